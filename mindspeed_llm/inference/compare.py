"""Owns the comparison of an exported Hugging Face directory with the checkpoint it was made of, as
transformers and as our own model see them. It knows no flags and changes no file."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from safetensors import SafetensorError

from mindspeed_llm.checkpoint.directory import model_directory
from mindspeed_llm.checkpoint.state import load_weights
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import CheckpointError, UserError
from mindspeed_llm.models.build import build_model
from mindspeed_llm.models.registry import read_model

ROWS, LENGTH = 2, 48
# Of the largest logit: two float32 implementations of one model differ by 1e-6 to 3e-5 of it, a
# single transposed or mixed up tensor by 1e-1 and more.
TOLERANCE = 1e-4
_TOKENIZER = ("tokenizer.json", "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Largest absolute difference of logits, the largest logit, and how many were compared."""

    difference: float
    largest: float
    count: int

    @property
    def limit(self) -> float:
        """Largest difference that is still rounding."""
        return TOLERANCE * max(1.0, self.largest)


def compare(checkpoint: Path, exported: Path, *, trust_pickle: bool = False) -> Comparison:
    """Logits of `checkpoint` by our model and of `exported` by transformers, float32, on the CPU.

    One model is in memory at a time. The process group of one rank exists and megatron-core is
    patched. `trust_pickle`: see `load_weights`.

    Raises:
        CheckpointError: transformers cannot open `exported`, the logits differ, or its tokenizer
            has another vocabulary than the checkpoint's.
    """
    model, theirs = read_model(model_directory(checkpoint)), read_model(exported)
    generator = torch.Generator().manual_seed(1)
    length = min(LENGTH, model.max_position_embeddings)
    ids = torch.randint(0, model.vocab_size, (ROWS, length), generator=generator)
    found = _of_transformers(exported, ids)
    gc.collect()
    gpt = _loaded(checkpoint, model, trust_pickle)
    wanted = _logits(gpt, getattr(torch, theirs.dtype), ids)
    done = Comparison(
        (wanted - found).abs().max().item(), wanted.abs().max().item(), wanted.numel()
    )
    if not done.difference <= done.limit:  # `not <=` also catches nan
        raise CheckpointError(
            f"{exported}: transformers computes other logits than the checkpoint {checkpoint}; "
            f"they differ by up to {done.difference:.3g}, expected at most {done.limit:.3g}"
        )
    _check_tokenizer(model_directory(checkpoint), exported)
    return done


def _loaded(checkpoint: Path, model: ModelConfig, trust_pickle: bool) -> GPTModel:
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)  # layers ask for it; nothing is drawn
    gpt = build_model(model, ParallelConfig(), dtype=torch.float32, perform_initialization=False)
    load_weights(checkpoint, [gpt], trust_pickle=trust_pickle)
    return gpt.eval()


def _logits(gpt: GPTModel, dtype: torch.dtype, ids: torch.Tensor) -> torch.Tensor:
    """Our logits [b, s, v], with weights rounded to `dtype`, that of the exported files."""
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.copy_(weight.to(dtype))
        return gpt(ids, positions, None)


def _of_transformers(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    import transformers  # late: seconds

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError,
            SafetensorError) as err:  # fmt: skip
        first = str(err).strip().splitlines() or [type(err).__name__]
        raise CheckpointError(f"{directory}: transformers cannot open it: {first[0]}") from err
    with torch.no_grad():
        return model.eval()(ids).logits


def _check_tokenizer(original: Path, exported: Path) -> None:
    """Raise CheckpointError unless both directories have one vocabulary, or none."""
    if not any((directory / name).is_file() for directory in (original, exported)
               for name in _TOKENIZER):  # fmt: skip
        return
    try:
        ours, theirs = load_tokenizer(original), load_tokenizer(exported)
    except UserError as err:
        raise CheckpointError(f"the tokenizer did not travel with the weights: {err}") from None
    if ours.sha256 != theirs.sha256:
        raise CheckpointError(f"{exported}: its tokenizer is not the checkpoint's ({original})")
