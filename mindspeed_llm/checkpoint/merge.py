"""Owns writing weights with an adapter merged into them, and an adapter by itself as PEFT keeps it.

Block by block, like `convert`: no model is built, no tensor is whole in memory beside the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint.convert import (
    SHARD_BYTES,
    Converted,
    Export,
    blocks,
    hf_target,
    plan_of,
    write_hf,
)
from mindspeed_llm.checkpoint.directory import (
    is_checkpoint_root,
    is_hf_directory,
    model_directory,
)
from mindspeed_llm.checkpoint.mcore_writer import Target, write_mcore
from mindspeed_llm.checkpoint.peft import is_peft_directory, write_peft
from mindspeed_llm.checkpoint.store import Planned
from mindspeed_llm.checkpoint.tensor_file import Ring
from mindspeed_llm.checkpoint.weights import Place, open_weights, read_adapter
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.names import NameRule, expand
from mindspeed_llm.models.registry import read_model, rules_of


def documents(place: Place) -> Path:
    """Directory of config.json and tokenizer: the run's that trained the adapter, or the base's."""
    assert place.adapter is not None
    return model_directory(place.adapter if is_checkpoint_root(place.adapter) else place.base)


def merge_to_hf(
    place: Place,
    save_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    check: Callable[[Path], None] | None = None,
) -> Converted:
    """Base and adapter -> a directory that transformers opens; arguments as of `mcore_to_hf`.

    Raises:
        CheckpointError: damaged, not the adapter's base, or target in use. Nothing is written then.
    """
    model, rules = _table(place)
    target = hf_target(place.base, save_dir, model, overwrite)
    source, _ = open_weights(place, dtype=dtype)
    export = Export(target, dtype, shard_bytes, tokenizer)
    return write_hf(export, source, rules, model, documents(place), check)


def merge_to_mcore(
    place: Place, save_dir: Path, *, dtype: torch.dtype | None = None, **options: Any
) -> Converted:
    """Base and adapter -> `<save_dir>/release`; arguments as of `hf_to_mcore`.

    Raises:
        CheckpointError: damaged, not the adapter's base, or target in use. Nothing is written then.
        ConfigError: the layout does not divide the model.
    """
    model, rules = _table(place)
    target = Target(root=save_dir, **options)
    target.check(model)
    source, _ = open_weights(place, dtype=dtype)
    plan = dict(zip(plan_of(source, rules, model), rules, strict=True))
    ring = Ring()

    def fetch(planned: Planned) -> Iterator[torch.Tensor]:
        for _, _, sums in blocks(source, plan[planned], model, ring, torch.float32):
            yield sums

    path = write_mcore(
        target, list(plan), fetch, model=model, documents=documents(place), what="merging"
    )
    return Converted(path, len(plan), sum(planned.nbytes for planned in plan))


def export_adapter(place: Place, save_dir: Path, *, overwrite: bool = False) -> Converted:
    """The adapter alone -> a PEFT directory; see `write_peft`.

    It names the base model where that is a Hugging Face directory.

    Raises:
        CheckpointError: damaged, or target in use. Nothing is written then.
    """
    assert place.adapter is not None
    if is_peft_directory(place.adapter):
        raise CheckpointError(f"{place.adapter}: a PEFT directory already; copy it")
    model = read_model(model_directory(place.base))
    adapter = read_adapter(place)
    base = str(place.base) if is_hf_directory(place.base) else None
    tensors = write_peft(adapter, model, save_dir, base=base, overwrite=overwrite)
    nbytes = sum(path.stat().st_size for path in save_dir.glob("*.safetensors"))
    return Converted(save_dir, tensors, nbytes)


def _table(place: Place) -> tuple[ModelConfig, list[NameRule]]:
    model = read_model(model_directory(place.base))
    return model, expand(rules_of(model), model.num_layers)
