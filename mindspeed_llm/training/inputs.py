"""Owns reading what a run starts from and checking that it all belongs together: checkpoint, model,
tokenizer, data. Everything a user can get wrong is found here, before a model is built.

It opens files only to read; it knows neither process groups nor modules.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from mindspeed_llm.checkpoint.directory import (
    find_checkpoint,
    is_checkpoint_root,
    model_directory,
)
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.dataset import SFTDataset, split_shares
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.errors import CheckpointError, ConfigError, DataError
from mindspeed_llm.logging import get_logger
from mindspeed_llm.models.registry import read_model

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_log = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run starts from, checked.

    `hf_dir` has config.json and tokenizer, for the checkpoints of this run; `continues` says that
    --load is an interrupted run; `validation` and `test` are None when not evaluated;
    `data_identity` changes with any token or label of the data set.
    """

    model: ModelConfig
    hf_dir: Path
    continues: bool
    train: SFTDataset
    validation: SFTDataset | None
    test: SFTDataset | None
    data_identity: str


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
    manifest = Manifest.read(DatasetFiles(Path(settings.data.data_path)))
    _check_data(settings, manifest, model)
    sha256 = _check_tokenizer(settings, hf_dir, model).sha256 if check_tokenizer else None
    train, validation, test = _splits(settings, sha256)
    return Inputs(
        model=model,
        hf_dir=hf_dir,
        continues=_continues(settings),
        train=train,
        validation=validation,
        test=test,
        data_identity=_identity(manifest),
    )


def _continues(settings: Settings) -> bool:
    root = settings.checkpoint.load
    return (
        not settings.checkpoint.finetune
        and is_checkpoint_root(root)
        and find_checkpoint(root).iteration is not None
    )


def _check_data(settings: Settings, manifest: Manifest, model: ModelConfig) -> None:
    where = f"--data-path {settings.data.data_path}"
    asked = settings.data.prompt_type
    if asked is not None and asked != manifest.template:
        raise ConfigError(
            f"--prompt-type is {asked}, but {where} was prepared with {manifest.template}; use "
            "that, or prepare the data again"
        )
    if manifest.packed:
        raise DataError(
            f"{where}: rows hold several conversations each, and packed rows cannot be trained "
            "yet; prepare the data without packing"
        )
    if manifest.vocab_size > model.vocab_size:
        raise DataError(
            f"{where}: prepared with a tokenizer of {manifest.vocab_size} tokens, the model has "
            f"{model.vocab_size}; prepare the data with the model's own tokenizer"
        )


def _check_tokenizer(settings: Settings, hf_dir: Path, model: ModelConfig) -> Tokenizer:
    """The tokenizer of the run, which must be the checkpoint's if that has one."""
    given = settings.data.tokenizer_name_or_path
    bundled = any((hf_dir / name).is_file() for name in _TOKENIZER_FILES)
    if given is None and not bundled:
        raise ConfigError(
            f"--load {settings.checkpoint.load} holds no tokenizer; give --tokenizer-name-or-path"
        )
    own = load_tokenizer(hf_dir, "--load") if bundled else None
    tokenizer = load_tokenizer(given) if given is not None else own
    assert tokenizer is not None
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"--tokenizer-name-or-path {given or hf_dir} has {tokenizer.vocab_size} tokens, the "
            f"model of --load has {model.vocab_size}; use the tokenizer of the model"
        )
    if own is not None and own.sha256 != tokenizer.sha256:
        raise ConfigError(
            f"--tokenizer-name-or-path {given} (vocabulary hash {tokenizer.sha256[:12]}) is not "
            f"the tokenizer of the model at --load ({own.sha256[:12]}); use that one"
        )
    return tokenizer


def _splits(
    settings: Settings, sha256: str | None
) -> tuple[SFTDataset, SFTDataset | None, SFTDataset | None]:
    shares = split_shares(settings.data.split)
    names = ("training", "validation", "test")
    found: list[SFTDataset | None] = []
    for name, share in zip(names, shares, strict=True):
        if name != "training" and not settings.log.eval_iters:
            found.append(None)
            continue
        rows = SFTDataset(
            settings.data.data_path,
            tokenizer_sha256=sha256,
            max_length=settings.train.seq_length,
            share=share,
        )
        if rows.left_out:
            _log.warning(
                "%d of %d %s rows are longer than --seq-length %d and are left out",
                rows.left_out, rows.left_out + len(rows), name, settings.train.seq_length,
            )  # fmt: skip
        found.append(rows if len(rows) else None)
    train, validation, test = found
    if train is None:
        raise ConfigError(f"--split {settings.data.split} leaves no row for training; raise it")
    if settings.log.eval_iters and validation is None:
        raise ConfigError(
            f"--eval-iters {settings.log.eval_iters} needs validation rows, and --split "
            f"{settings.data.split} leaves none; use for example --split 95,5,0"
        )
    return train, validation, test


def _identity(manifest: Manifest) -> str:
    # Without the names, which begin with the prefix: a data set may be moved.
    sums = [file["sha256"] for _, file in sorted(manifest.files.items())]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:16]
