"""Owns opening the rows of a run: the data sets of --data-path, their checks, splits and order.
Knows neither weights nor process groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.train import Settings
from mindspeed_llm.data.blend import Blend, Ordering, check_alike, identity
from mindspeed_llm.data.dataset import SFTDataset, split_shares
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.logging import get_logger
from mindspeed_llm.training.packs import check_packing

_log = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a run; `validation` and `test` are None when not evaluated.

    `identity` changes with any token, label or weight of the data sets and with how many rows are
    trained.
    """

    train: Blend
    validation: Blend | None
    test: Blend | None
    identity: str


def read_manifests(settings: Settings, model: ModelConfig) -> list[Manifest]:
    """The manifests of the data sets of --data-path, checked against each other and the model.

    Raises:
        ConfigError: --prompt-type is not the one of the data.
        DataError: a data set is missing or damaged, does not fit the others or the model.
    """
    prefixes = settings.data.prefixes
    manifests = [Manifest.read(DatasetFiles(Path(prefix))) for prefix in prefixes]
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        _check_data(settings, f"--data-path {prefix}", manifest, model)
    check_alike(prefixes, manifests)
    return manifests


def _check_data(settings: Settings, where: str, manifest: Manifest, model: ModelConfig) -> None:
    asked = settings.data.template
    if asked is not None and asked != manifest.template:
        raise ConfigError(
            f"--prompt-type is {asked}, but {where} was prepared with {manifest.template}; use "
            "that, or prepare the data again"
        )
    if manifest.settings.get("template_compat"):
        _log.warning(
            "%s: prepared with --template-compat %s. Where its labels say eos over an end-of-turn "
            "token, the model learns to say eos at the end of an answer and not the token that its "
            "chats contain; it stops only where eos is a stop token too",
            where, manifest.settings["template_compat"],
        )  # fmt: skip
    check_packing(settings, where, manifest, model)
    if manifest.vocab_size > model.vocab_size:
        raise DataError(
            f"{where}: prepared with a tokenizer of {manifest.vocab_size} tokens, the model has "
            f"{model.vocab_size}; prepare the data with the model's own tokenizer"
        )


def open_rows(settings: Settings, manifests: Sequence[Manifest], sha256: str | None) -> Rows:
    """The training, validation and test rows: --split inside each data set.

    Args:
        manifests: of the data sets, from `read_manifests`.
        sha256: see `SFTDataset`.

    Raises:
        ConfigError: a data set has no row for training, or none has one for validation.
        DataError: see `SFTDataset`.
    """
    parts = [
        _part(settings, name, share, sha256)
        for name, share in zip(
            ("training", "validation", "test"), split_shares(settings.data.split), strict=True
        )
    ]
    train, validation, test = parts
    assert train is not None
    if settings.log.eval_iters and validation is None:
        raise ConfigError(
            f"--eval-iters {settings.log.eval_iters} needs validation rows, and --split "
            f"{settings.data.split} leaves none; use for example --split 95,5,0"
        )
    # The number says which rows were short enough, and which part of them is trained.
    content = identity(manifests, settings.data.weights)
    return Rows(train, validation, test, f"{content} ({len(train)} rows)")


def _part(
    settings: Settings, name: str, share: tuple[float, float], sha256: str | None
) -> Blend | None:
    if name != "training" and not settings.log.eval_iters:
        return None
    length, weights = settings.train.seq_length, settings.data.weights
    members, kept = [], []
    for index, prefix in enumerate(settings.data.prefixes):
        rows = SFTDataset(prefix, tokenizer_sha256=sha256, max_length=length, share=share)
        if rows.left_out:
            _log.warning(
                "%d of %d %s rows are longer than --seq-length %d and are left out",
                rows.left_out, rows.left_out + len(rows), name, length,
            )  # fmt: skip
        if len(rows):
            members.append(rows)
            kept += [weights[index]] if weights is not None else []
        elif name == "training":
            raise ConfigError(
                f"--split {settings.data.split} leaves no row for training in {prefix}; raise its "
                "first number, or drop the data set"
            )
        elif len(settings.data.prefixes) > 1:
            _log.warning("%s has no %s rows (--split %s)", prefix, name, settings.data.split)
    return Blend(members, kept if weights is not None else None) if members else None


def ordering(settings: Settings, batch_size: int, total: int) -> Ordering:
    """How the training samples of a run of `total` steps of `batch_size` rows follow each other."""
    data = settings.data
    return Ordering(
        seed=settings.train.seed,
        shuffle=data.shuffle,
        fill=batch_size if data.padded_samples else 1,
        samples=total * batch_size if data.full_shuffle_instruction_dataset else None,
    )


def order_fact(how: Ordering, rows: Blend) -> bool | str:
    """What must stay the same for the order to: True, False, or more than that in words."""
    if how.samples is not None:
        rounds = [-(-how.samples // len(rows))] if rows.weights is None else [how.samples]
        return f"all of {rounds[0]} {'epochs' if rows.weights is None else 'samples'} together"
    return f"{how.shuffle}, padded" if how.fill > 1 else how.shuffle


def say_passes(settings: Settings, rows: Blend, samples: int) -> None:
    """Log how often a run of `samples` samples goes through each data set of a blend."""
    if len(rows.members) < 2:
        return
    for prefix, member, passes in zip(
        settings.data.prefixes, rows.members, rows.passes(samples), strict=True
    ):
        _log.info("%s: %d rows, gone through %.2f times", prefix, len(member), passes)
