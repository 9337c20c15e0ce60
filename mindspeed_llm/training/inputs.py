"""Owns reading what a run starts from and checking that it all belongs together: checkpoint, model,
tokenizer, data. Everything a user can get wrong is found here, before a model is built.

It opens files only to read; it knows neither process groups nor modules.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.checkpoint.assets import Chat
from mindspeed_llm.checkpoint.directory import (
    find_checkpoint,
    is_checkpoint_root,
    model_directory,
)
from mindspeed_llm.checkpoint.tracker import find_foreign
from mindspeed_llm.checkpoint.weights import locate, shape_of_adapter
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.jinja_form import as_jinja
from mindspeed_llm.data.manifest import Manifest
from mindspeed_llm.data.mindspeed_templates import MINDSPEED_TEMPLATES
from mindspeed_llm.data.model_tokenizer import model_tokenizer
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import TEMPLATES
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.models.registry import read_model
from mindspeed_llm.training.board import check_tensorboard
from mindspeed_llm.training.rows import Rows, open_rows, read_manifests
from mindspeed_llm.training.trained import Choice, choose


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run starts from, checked.

    `hf_dir` has config.json and tokenizer, for the checkpoints of this run; `choice` is what is
    trained; `continues` says that --load or --lora-load is an interrupted run; `chat` is how
    the model will talk after it (None where no tokenizer was loaded).
    """

    model: ModelConfig
    hf_dir: Path
    choice: Choice
    continues: bool
    rows: Rows
    chat: Chat | None = None


def read_inputs(
    settings: Settings, architecture: ArchitectureFlags, *, check_tokenizer: bool
) -> Inputs:
    """Read and check everything but the weights.

    Args:
        check_tokenizer: load the tokenizers and compare them; once in a job is enough.

    Raises:
        CheckpointError: no checkpoint at --load, or it is not whole.
        ConfigError: a flag contradicts the checkpoint, the data set or another flag.
        DataError: no data set at --data-path, or not of this tokenizer or model.
    """
    if settings.log.tensorboard_dir is not None and check_tokenizer:
        check_tensorboard()
    load = settings.checkpoint.load
    if not load.exists():
        raise CheckpointError(
            f"--load {load}: no such directory; expected a checkpoint made by convert_ckpt.py or "
            "by an earlier training run"
        )
    hf_dir = model_directory(load)
    model = read_model(hf_dir)
    architecture.check(model, settings.parallel)
    settings.check_model(model)
    place = locate(load, settings.tuning.lora_load, trust_pickle=settings.checkpoint.trust_pickle)
    loaded = None if place.adapter is None else shape_of_adapter(place)
    choice = choose(settings.tuning, place, loaded, model)
    continues = _continues(settings, choice)
    if settings.optimizer.override_opt_param_scheduler and not continues:
        raise ConfigError(
            f"--override-opt-param-scheduler has no effect: --load {load} is no interrupted run, "
            "and the schedule is a new one; drop it"
        )
    manifests = read_manifests(settings, model)
    given = settings.data.tokenizer_name_or_path
    tokenizer = model_tokenizer(given, hf_dir, model) if check_tokenizer else None
    rows = open_rows(settings, manifests, None if tokenizer is None else tokenizer.sha256)
    return Inputs(
        model=model,
        hf_dir=hf_dir,
        choice=choice,
        continues=continues,
        rows=rows,
        chat=None if tokenizer is None else _chat(manifests[0], tokenizer),
    )


def _chat(manifest: Manifest, tokenizer: Tokenizer) -> Chat:
    """How a model talks that was trained on the data of `manifest`."""
    if manifest.template == HfChatTemplate.name:
        return Chat(Renderer(tokenizer, HfChatTemplate(tokenizer)).stop_ids)
    tables = (TEMPLATES, MINDSPEED_TEMPLATES)
    named = [table[manifest.template] for table in tables if manifest.template in table]
    named.sort(key=lambda template: template.fingerprint() != manifest.template_sha256)
    if not named:
        return Chat(tokenizer.eos_ids)
    return Chat(Renderer(tokenizer, named[0]).stop_ids, as_jinja(named[0]))


def _continues(settings: Settings, choice: Choice) -> bool:
    root = choice.place.adapter or choice.place.base
    foreign = find_foreign(root)
    if foreign is not None:
        if not settings.checkpoint.finetune and foreign.iteration is not None:
            raise ConfigError(
                f"--load {root}: a run of Megatron-LM, whose optimizer and schedule are not read; "
                "--finetune --trust-pickle starts from its weights"
            )
        return False
    interrupted = (
        not settings.checkpoint.finetune
        and is_checkpoint_root(root)
        and find_checkpoint(root).iteration is not None
    )
    if interrupted and choice.lora is not None and choice.place.adapter is None:
        raise ConfigError(
            f"--load {root} is an interrupted run of the whole model, which LoRA cannot "
            "continue; --finetune starts adapters on its weights"
        )
    if interrupted:
        was = find_checkpoint(root).common()["state"].get("trained", choice.said)
        if was != choice.said:
            raise ConfigError(
                f"this run cannot be continued exactly: what is trained was {was} and is "
                f"{choice.said}. Use the values of the checkpoint, or --finetune to start from "
                "its weights"
            )
    return interrupted
