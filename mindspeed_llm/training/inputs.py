"""Owns reading what a run starts from and checking that it all belongs together: checkpoint, model,
tokenizer, data. Everything a user can get wrong is found here, before a model is built.

It opens files only to read; it knows neither process groups nor modules.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.checkpoint.directory import (
    find_checkpoint,
    is_checkpoint_root,
    model_directory,
)
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.model_tokenizer import model_tokenizer
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.models.registry import read_model
from mindspeed_llm.training.rows import Rows, open_rows, read_manifests


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run starts from, checked.

    `hf_dir` has config.json and tokenizer, for the checkpoints of this run; `continues` says that
    --load is an interrupted run.
    """

    model: ModelConfig
    hf_dir: Path
    continues: bool
    rows: Rows


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
    load = settings.checkpoint.load
    if not load.exists():
        raise CheckpointError(
            f"--load {load}: no such directory; expected a checkpoint made by convert_ckpt.py or "
            "by an earlier training run"
        )
    hf_dir = model_directory(load)
    model = read_model(hf_dir)
    architecture.check(model, settings.parallel)
    settings.parallel.check_model(model)
    if settings.train.seq_length > model.max_position_embeddings:
        raise ConfigError(
            f"--seq-length {settings.train.seq_length} is beyond the model's "
            f"{model.max_position_embeddings} positions; lower it"
        )
    manifests = read_manifests(settings, model)
    given = settings.data.tokenizer_name_or_path
    sha256 = model_tokenizer(given, hf_dir, model).sha256 if check_tokenizer else None
    return Inputs(
        model=model,
        hf_dir=hf_dir,
        continues=_continues(settings),
        rows=open_rows(settings, manifests, sha256),
    )


def _continues(settings: Settings) -> bool:
    root = settings.checkpoint.load
    return (
        not settings.checkpoint.finetune
        and is_checkpoint_root(root)
        and find_checkpoint(root).iteration is not None
    )
