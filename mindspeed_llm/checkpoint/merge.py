"""Owns writing weights with an adapter merged into them, and an adapter by itself as PEFT keeps it.

Tensor by tensor, like `convert`: no model is built, one tensor is in memory beside the adapter.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mindspeed_llm.checkpoint.adapter import MergedSource
from mindspeed_llm.checkpoint.assets import CONFIG, copy_assets, set_dtype, sync_tree
from mindspeed_llm.checkpoint.convert import (
    SHARD_BYTES,
    Converted,
    check_mcore_target,
    hf_target,
    put_in_place,
    write_hf_weights,
)
from mindspeed_llm.checkpoint.directory import (
    Staging,
    is_checkpoint_root,
    is_hf_directory,
    model_directory,
)
from mindspeed_llm.checkpoint.hf_source import HFWeights, global_name, planned_of
from mindspeed_llm.checkpoint.peft import is_peft_directory, write_peft
from mindspeed_llm.checkpoint.progress import ByteProgress
from mindspeed_llm.checkpoint.store import Planned, merge_indexes, write_chunks
from mindspeed_llm.checkpoint.weights import Place, open_weights, read_adapter
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
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
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f"{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        copy_assets(documents(place), staging, tokenizer)
        tensors, nbytes = write_hf_weights(staging, source, rules, model, dtype, shard_bytes)
        written = {source.tensors[global_name(rule)[0]].dtype for rule in rules}
        if len(written) == 1:
            set_dtype(staging / CONFIG, *written)
        HFWeights(staging).close()  # reads it back: index, names, shapes and sizes of all files
        sync_tree(staging)
        if check is not None:
            check(staging)
        put_in_place(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Converted(target, tensors, nbytes)


def merge_to_mcore(
    place: Place,
    save_dir: Path,
    *,
    parallel: ParallelConfig | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> Converted:
    """Base and adapter -> `<save_dir>/release`; arguments as of `hf_to_mcore`.

    Raises:
        CheckpointError: damaged, not the adapter's base, or target in use. Nothing is written then.
        ConfigError: the layout does not divide the model.
    """
    model, rules = _table(place)
    parallel = parallel or ParallelConfig()
    parallel.check_model(model)
    check_mcore_target(save_dir, overwrite)
    source, _ = open_weights(place, dtype=dtype)
    assert isinstance(source, MergedSource)
    plan = _plan(source, rules, model)

    def fetch(planned: Planned) -> torch.Tensor:
        sums = torch.empty(planned.shape, dtype=torch.float32)
        source.read(planned.key, planned.offset, sums)
        return sums

    total = sum(planned.nbytes for planned in plan)
    staging = Staging.begin(save_dir, None)
    try:
        with ByteProgress("merging", total) as progress:
            records, index = write_chunks(
                staging.path, "model-r00000", plan, fetch, on_bytes=progress.advance
            )
        layout = {
            "processes": 1,
            "tensor_parallel": parallel.tensor_model_parallel_size,
            "pipeline_parallel": parallel.pipeline_model_parallel_size,
            "expert_parallel": parallel.expert_model_parallel_size,
        }
        about = {"vocab_size": model.vocab_size, "iteration": None, "optimizer": [],
                 "layout": layout}  # fmt: skip
        common = {"about": about, "state": {}, "optimizer": {}, "objects": {}, "rng": []}
        records += staging.write_documents(
            merge_indexes([index]), common, documents(place), tokenizer
        )
        checkpoint = staging.commit(records)
    except BaseException:
        staging.discard()
        raise
    return Converted(checkpoint.path, len(plan), total)


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


def _plan(source: MergedSource, rules: Sequence[NameRule], model: ModelConfig) -> list[Planned]:
    return [planned_of(rule, model, source.tensors[global_name(rule)[0]].dtype) for rule in rules]
