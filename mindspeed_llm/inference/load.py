"""Owns bringing a model up to talk: checks that checkpoint, tokenizer, template and flags belong
together, cuts the ranks into groups, loads the weights. It knows no prompts."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from mindspeed_llm.checkpoint.directory import model_directory
from mindspeed_llm.checkpoint.state import load_weights
from mindspeed_llm.checkpoint.weights import locate
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.inference import DEFAULT_CONTEXT, LoadSettings
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.model_tokenizer import model_tokenizer
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.data.verify import verify_template
from mindspeed_llm.errors import CheckpointError, ConfigError, TemplateError
from mindspeed_llm.inference.engine import Engine
from mindspeed_llm.inference.ranks import Ranks
from mindspeed_llm.inference.stages import Stages
from mindspeed_llm.logging import get_logger, rank
from mindspeed_llm.models.build import build_model
from mindspeed_llm.models.registry import read_model

_log = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What belongs to a model besides its weights, checked.

    `renderer` is None where no chat template was asked for.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    renderer: Renderer | None
    context: int


def read_parts(
    settings: LoadSettings, parallel: ParallelConfig, architecture: ArchitectureFlags
) -> Parts:
    """Read and check everything but the weights; needs no process group.

    Raises:
        CheckpointError: no checkpoint at --load.
        ConfigError: flags, tokenizer and checkpoint do not belong together.
        TemplateError: the template does not fit the tokenizer.
    """
    load = settings.load
    if not load.exists():
        raise CheckpointError(
            f"--load {load}: no such directory; expected a checkpoint made by convert_ckpt.py, a "
            "training run, or a Hugging Face model"
        )
    if parallel.sequence_parallel:
        raise ConfigError(
            "--sequence-parallel cannot be honoured here: a single new token cannot be split over "
            "its sequence; drop it"
        )
    if parallel.context_parallel_size > 1:
        raise ConfigError(
            "--context-parallel-size cannot be honoured here: a single new token cannot be split "
            "over ranks; use --tensor-model-parallel-size or --pipeline-model-parallel-size"
        )
    if parallel.is_interleaved:
        raise ConfigError(
            "interleaved pipelines cannot be honoured here: a token goes through the layers once; "
            "drop the flag of virtual stages, the checkpoint loads at any layout"
        )
    locate(load, settings.lora_load, trust_pickle=settings.trust_pickle)
    directory = model_directory(load)
    model = read_model(directory)
    architecture.check(model, parallel)
    parallel.check_model(model)
    tokenizer = model_tokenizer(settings.tokenizer_name_or_path, directory, model)
    return Parts(
        model=model,
        tokenizer=tokenizer,
        renderer=_renderer(settings, tokenizer),
        context=_context(settings, model),
    )


def _renderer(settings: LoadSettings, tokenizer: Tokenizer) -> Renderer | None:
    if settings.hf_chat_template:
        return Renderer(tokenizer, HfChatTemplate(tokenizer))
    if settings.prompt_type is None:
        return None
    template = find_template(settings.prompt_type, settings.template_compat, settings.thinking)
    renderer = Renderer(tokenizer, template)
    if rank() == 0 and settings.template_compat is None:
        _compare_template(renderer)
    return renderer


def _compare_template(renderer: Renderer) -> None:
    """Warn where the template is not the tokenizer's own: right for a model that was tuned with
    another one, and silent nonsense for one that was not. A checkpoint does not say which."""
    try:
        verify_template(renderer, mend="Right only if the model was tuned with it; else choose the "
                        "model's own --prompt-type or --hf-chat-template")  # fmt: skip
    except TemplateError as err:
        _log.warning("%s", err)


def _context(settings: LoadSettings, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    asked = settings.seq_length
    if asked is not None and asked > longest:
        raise ConfigError(
            f"--seq-length {asked} is beyond the model's {longest} positions; lower it"
        )
    return asked if asked is not None else min(longest, DEFAULT_CONTEXT)


def start_engine(
    settings: LoadSettings,
    parts: Parts,
    parallel: ParallelConfig,
    device: torch.device,
    **options: int | None,
) -> Engine:
    """Build the model, load its weights; the process group exists and megatron-core is patched.

    `options` are the engine's: budget, rows, chunk.

    Raises:
        ConfigError: the number of processes is not that of one replica of the model.
        CheckpointError: damaged weights, or weights of another model.
    """
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    world, needed = dist.get_world_size(), parallel.replica_size
    parallel.data_parallel_size(world)
    if world != needed:
        raise ConfigError(
            f"{world} processes, but TP {tp} x PP {pp}{_said(parallel)} needs {needed}: replicas "
            f"would say the same; start {needed}"
        )
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tp,
            pp,
            expert_model_parallel_size=parallel.expert_model_parallel_size,
            expert_tensor_parallel_size=parallel.expert_tensor_size,
        )
    tensor_parallel.model_parallel_cuda_manual_seed(1234)  # layers ask for it; nothing is drawn
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    model = build_model(parts.model, parallel, dtype=dtype, kernel_device=device.type,
                        perform_initialization=False)  # fmt: skip
    model.to(device)
    load_weights(
        settings.load, [model], adapter=settings.lora_load, trust_pickle=settings.trust_pickle
    )
    model.eval().requires_grad_(False)
    count = sum(p.numel() for p in model.parameters())
    _log.info("%s: %.1f M parameters on this rank, %s", parts.model.family, count / 1e6, dtype)
    stops = (*parts.tokenizer.eos_ids, *parts.model.eos_token_ids)
    if parts.renderer is not None:
        stops = (*parts.renderer.stop_ids, *stops)
    # Ranks are numbered by stage last, so the last stage begins here. Where experts lie on more
    # ranks than TP has, all of them work on the same tokens.
    source = world - world // pp
    return Engine(Stages(model, device, parts.context), Ranks(source), stop_ids=stops, **options)


def _said(parallel: ParallelConfig) -> str:
    ep = parallel.expert_model_parallel_size
    return "" if ep == 1 else f", EP {ep} of experts cut by {parallel.expert_tensor_size},"
