"""Owns opening the weights that a path names, whatever it is: a Hugging Face directory, a
checkpoint, a LoRA checkpoint, or weights and an adapter. It fills no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from mindspeed_llm.checkpoint.adapter import (
    SECTION,
    Adapter,
    Base,
    MergedSource,
    is_lora_checkpoint,
    lora_of,
    read_lora,
    weights_sha256,
)
from mindspeed_llm.checkpoint.directory import (
    HF,
    CheckpointDir,
    Verify,
    find_checkpoint,
    is_checkpoint_root,
    is_hf_directory,
    model_directory,
    verify,
)
from mindspeed_llm.checkpoint.hf_source import HFSource
from mindspeed_llm.checkpoint.peft import is_peft_directory, read_peft
from mindspeed_llm.checkpoint.store import Stored, TensorSource
from mindspeed_llm.checkpoint.sums import check_sums
from mindspeed_llm.checkpoint.tracker import Foreign, find_foreign
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.tuning import LoraConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.logging import get_logger
from mindspeed_llm.models.registry import read_model

_log = get_logger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where weights are: whole ones, and the adapter that belongs on them (ours or PEFT's).

    `trust_pickle`: the user allows pickled weights of others, see `pickled`.
    """

    base: Path
    adapter: Path | None = None
    trust_pickle: bool = False


def locate(load: Path, lora_load: Path | None = None, *, trust_pickle: bool = False) -> Place:
    """Base and adapter of `--load` and `--lora-load`; a LoRA checkpoint says where its base is.

    Raises:
        CheckpointError: not what it should be, or the base is no longer there.
    """
    if is_lora_checkpoint(load):
        if lora_load is not None:
            raise CheckpointError(f"--load {load} is a LoRA checkpoint and --lora-load {lora_load} "
                                  "another adapter; give base weights with --load")  # fmt: skip
        found = lora_of(find_checkpoint(load))
        assert found is not None
        base = found[1].path
        if not base.exists():
            raise CheckpointError(
                f"{load}: a LoRA checkpoint whose base weights were at {base}, where they are no "
                f"more; say where they are: --load BASE --lora-load {load}"
            )
        return Place(base=base, adapter=load, trust_pickle=trust_pickle)
    if lora_load is None:
        if is_peft_directory(load):
            raise CheckpointError(f"{load}: an adapter of PEFT, without the weights it belongs to; "
                                  f"give --load BASE --lora-load {load}")  # fmt: skip
        return Place(base=load, trust_pickle=trust_pickle)
    if not (is_lora_checkpoint(lora_load) or is_peft_directory(lora_load)):
        raise CheckpointError(f"--lora-load {lora_load}: no adapter; expected a LoRA checkpoint "
                              "of posttrain_gpt.py or a PEFT directory")  # fmt: skip
    return Place(base=load, adapter=lora_load, trust_pickle=trust_pickle)


def shape_of_adapter(place: Place) -> LoraConfig:
    """The shape of the adapter at `place`; one rank alone may call it.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    assert place.adapter is not None
    if is_peft_directory(place.adapter):
        return read_peft(place.adapter, read_model(model_directory(place.base))).config
    checkpoint = find_checkpoint(place.adapter)
    _check_model(place, checkpoint)
    found = lora_of(checkpoint)
    assert found is not None
    return found[0]


def read_adapter(place: Place, *, check: Verify = "full") -> Adapter:
    """The adapter of `place`; every rank calls it.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    assert place.adapter is not None
    if is_peft_directory(place.adapter):
        return read_peft(place.adapter, read_model(model_directory(place.base)))
    checkpoint = find_checkpoint(place.adapter)
    verify_sections(checkpoint, checkpoint.reader().tensors, (SECTION,), check)
    _check_model(place, checkpoint)
    return read_lora(checkpoint)


def _check_model(place: Place, adapter: CheckpointDir) -> None:
    own, model = read_model(adapter.hf_dir), read_model(model_directory(place.base))
    if not own.is_same_but_for_dtype(model):
        raise CheckpointError(f"{place.adapter}: an adapter of a {own.family} model of another "
                              f"shape than the {model.family} model at {place.base}")  # fmt: skip


def open_base(
    root: Path, *, check: Verify = "full", trust_pickle: bool = False
) -> tuple[TensorSource, int]:
    """The whole weights at `root` and the size of their vocabulary; every rank calls it.

    Raises:
        CheckpointError: missing or damaged; pickled, and not trusted.
    """
    if not is_checkpoint_root(root) and is_hf_directory(root):
        _log.info("loading Hugging Face weights from %s", root)
        source = HFSource(root, trust_pickle=trust_pickle)
        return source, source.weights.model.vocab_size
    foreign = find_foreign(root)
    if foreign is not None:
        _log.info("loading the weights of the %s checkpoint %s", foreign.kind, foreign.path)
        if check == "full":
            check_sums(foreign.path)
        model = read_model(foreign.hf_dir)
        return open_foreign(foreign, model, trusted=trust_pickle), model.vocab_size
    checkpoint = find_checkpoint(root)
    stored = checkpoint.reader()
    verify_sections(checkpoint, stored.tensors, (SECTION,), check)
    _log.info("loading weights from %s", checkpoint.path)
    return stored, checkpoint.common()["about"]["vocab_size"]


def open_foreign(foreign: Foreign, model: ModelConfig, *, trusted: bool) -> TensorSource:
    """The weights of a checkpoint of Megatron-LM or MindSpeed-LLM.

    Raises:
        CheckpointError: not trusted, or damaged.
    """
    # Late: few need these, and megatron-core takes seconds to import.
    from mindspeed_llm.checkpoint.mp_rank import MpRankReader
    from mindspeed_llm.checkpoint.torch_dist import TorchDistReader

    if foreign.kind == "torch_dist":
        return TorchDistReader(foreign.path, trusted=trusted)
    return MpRankReader(foreign.path, model, trusted=trusted)


def open_weights(
    place: Place, *, check: Verify = "full", dtype: torch.dtype | None = None
) -> tuple[TensorSource, int]:
    """The weights at `place`, with the adapter merged into what is read; every rank calls it.

    Args:
        dtype: what weights that are merged claim to be stored as; None: the base's.

    Raises:
        CheckpointError: missing, damaged, or a base that is not the adapter's.
    """
    source, vocab_size = open_base(place.base, check=check, trust_pickle=place.trust_pickle)
    if place.adapter is None:
        return source, vocab_size
    adapter = read_adapter(place, check=check)
    identify(place, source, vocab_size, adapter.base)
    _log.info("merging the adapter of %s", place.adapter)
    return MergedSource(source, adapter, dtype), vocab_size


def identify(
    place: Place, source: TensorSource, vocab_size: int, expected: Base | None = None
) -> Base:
    """What the weights at `place.base` are; every rank calls it.

    Raises:
        CheckpointError: they are not those that the adapter at `place` was trained on.
    """
    path, files = place.base, {}
    if is_checkpoint_root(path) and find_foreign(path) is None:
        checkpoint = find_checkpoint(path)
        path = checkpoint.path  # not the root, whose tracker may go on to another iteration
        files = {name: record.sha256 for name, record in checkpoint.files.items()
                 if name.startswith(f"{SECTION}-")}  # fmt: skip
    if expected is not None and files and files == expected.files:
        return dataclasses.replace(expected, path=path)
    sha256 = weights_sha256(source, vocab_size)
    if expected is not None and expected.sha256 != sha256:
        raise CheckpointError(
            f"{place.base}: not the weights that the adapter {place.adapter} was trained on (hash "
            f"{sha256[:12]}, expected {expected.sha256[:12]}, then at {expected.path}); use those"
        )
    return Base(path=path, sha256=sha256, files=files)


def verify_sections(
    checkpoint: CheckpointDir,
    tensors: Mapping[str, Stored],
    sections: Iterable[str],
    check: Verify,
) -> None:
    """Check the files that hold tensors of `sections`, and hf/; see `verify`."""
    wanted = set(sections)
    names = {c.file for s in tensors.values() if s.section in wanted for c in s.chunks}
    hf = {name for name in checkpoint.files if name.startswith(f"{HF}/")}
    verify(checkpoint, names | hf, check)
