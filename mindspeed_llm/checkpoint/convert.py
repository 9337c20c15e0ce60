"""Owns the conversion of weights between Hugging Face directories and our checkpoints.

Block by block through the family's name table: no model is built, no tensor is whole in memory, and
the target appears only when it is complete. It knows no flags.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint.assets import CONFIG, copy_assets, set_dtype, sync_tree, write_json
from mindspeed_llm.checkpoint.directory import (
    COMMON,
    find_checkpoint,
    model_directory,
    put_in_place,
    staging_beside,
    verify,
)
from mindspeed_llm.checkpoint.hf_source import (
    WEIGHTS,
    WEIGHTS_INDEX,
    HFSource,
    HFWeights,
    global_name,
    global_shape,
    planned_of,
)
from mindspeed_llm.checkpoint.mcore_writer import Target, write_mcore
from mindspeed_llm.checkpoint.progress import ByteProgress
from mindspeed_llm.checkpoint.store import ChunkReader, Planned, TensorSource
from mindspeed_llm.checkpoint.tensor_file import Ring, TensorFileWriter
from mindspeed_llm.checkpoint.tracker import find_foreign
from mindspeed_llm.checkpoint.weights import open_base
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.logging import get_logger
from mindspeed_llm.models.names import NameRule, expand, hf_shapes, spans
from mindspeed_llm.models.registry import read_model, rules_of
from mindspeed_llm.models.shapes import mcore_shape

SHARD_BYTES = 5 * 10**9
_MG2HF = "mg2hg"  # sic: the name that MindSpeed-LLM's converter writes below an original model
_log = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        path: directory that was written.
        tensors: tensors written; `nbytes`: their size.
        skipped: redundant source tensors that were not converted (tied output layer, buffers).
        odd: Hugging Face names of tensors with NaN or infinite values; these are kept as they are.
    """

    path: Path
    tensors: int
    nbytes: int
    skipped: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: on blocks of 2 MiB its others only spin, on the cores that hashing
    and writing need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_odd(tensor: torch.Tensor) -> bool:
    # NaN is both the least and the greatest; no mask of the tensor's size is made.
    return tensor.numel() > 0 and not all(bound.isfinite() for bound in tensor.aminmax())


def blocks(
    source: TensorSource,
    rule: NameRule,
    model: ModelConfig,
    ring: Ring,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """The Megatron-Core tensor of `rule` from `source`, each row once, in their order.

    Args:
        ring: whose buffers the blocks are in, which are read into when it has gone round.
        dtype: of the blocks; None: as `source` has it.

    Yields:
        the Hugging Face tensor that a block belongs to, the block's first element there, and it.
    """
    box = planned_of(rule, model, dtype or source.tensors[global_name(rule)[0]].dtype)
    rows, *rest = mcore_shape(rule, model)
    lead = box.offset[: -1 - len(rest)]
    width = math.prod(rest)
    most = max(1, ring.nbytes // (width * box.dtype.itemsize))
    for span in spans(rule, model, rows):
        for start in range(0, span.rows, most):
            count = min(most, span.rows - start)
            block = ring.take((*(1 for _ in lead), count, *rest), box.dtype)
            source.read(box.key, (*lead, span.mcore + start, *(0 for _ in rest)), block)
            yield rule.hf[span.part], (span.hf + start) * width, block


def _warn_odd(where: Path, odd: Iterable[str]) -> None:
    names = list(odd)
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        _log.warning("%s: NaN or infinite values in %d tensors, which are kept: %s%s", where,
                     len(names), ", ".join(names[:8]), more)  # fmt: skip


def hf_to_mcore(
    load_dir: Path,
    save_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    trust_pickle: bool = False,
    **options: Any,
) -> Converted:
    """Hugging Face weights -> `<save_dir>/release`.

    Args:
        dtype: cast to this; None keeps every bit.
        trust_pickle: read weights in .bin files too, see `pickled`.
        options: of the `Target`: layout, tokenizer, overwrite, format.

    Raises:
        CheckpointError: weights that are missing, unknown, left over, of a wrong shape or dtype, or
            damaged; `save_dir` in use, or in `load_dir`. Nothing is written then.
        ConfigError: the layout does not divide the model.
    """
    target = Target(root=save_dir, **options)
    check_apart(load_dir, save_dir)
    model = read_model(load_dir)
    target.check(model)
    source = HFSource(load_dir, trust_pickle=trust_pickle)
    try:
        done = source_to_mcore(source, target, model=model, documents=load_dir, dtype=dtype)
    finally:
        source.close()
    return dataclasses.replace(done, skipped=tuple(source.weights.skipped))


@_one_thread()
def source_to_mcore(
    source: TensorSource,
    target: Target,
    *,
    model: ModelConfig,
    documents: Path,
    dtype: torch.dtype | None = None,
    what: str = "converting",
) -> Converted:
    """Whole weights from anywhere -> `<target.root>/release`.

    Args:
        documents: directory of config.json and tokenizer.
        dtype: cast to this; None keeps what `source` has.

    Raises:
        CheckpointError: tensors that are missing, left over or of a wrong shape, target in use.
            Nothing is written then.
        ConfigError: the layout does not divide the model.
    """
    target.check(model)
    rules = expand(rules_of(model), model.num_layers)
    check_stored(documents, source, rules, model)
    plan = {dataclasses.replace(p, dtype=dtype or p.dtype): rule
            for p, rule in zip(plan_of(source, rules, model), rules, strict=True)}  # fmt: skip
    odd: dict[str, None] = {}
    ring = Ring()

    def fetch(planned: Planned) -> Iterator[torch.Tensor]:
        for name, _, block in blocks(source, plan[planned], model, ring):
            if _is_odd(block):
                odd[name] = None
            yield block

    path = write_mcore(target, list(plan), fetch, model=model, documents=documents, what=what)
    _warn_odd(documents, odd)
    total = sum(planned.nbytes for planned in plan)
    return Converted(path, len(plan), total, odd=tuple(odd))


def plan_of(source: TensorSource, rules: Iterable[NameRule], model: ModelConfig) -> list[Planned]:
    """Every tensor of the model as `source` has it, unpadded."""
    return [planned_of(rule, model, source.tensors[global_name(rule)[0]].dtype) for rule in rules]


def check_apart(source: Path, target: Path) -> None:
    """Raise CheckpointError where writing `target` would change or replace what is read."""
    read, written = source.resolve(), target.resolve()
    if read == written or read in written.parents:
        raise CheckpointError(f"{target}: lies in {source}, which is read; choose a directory "
                              "outside it")  # fmt: skip
    if written in read.parents:
        raise CheckpointError(f"{target}: holds {source}, which is read, and would be replaced; "
                              "choose another directory")  # fmt: skip


def mcore_to_hf(
    load_dir: Path,
    save_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    check: Callable[[Path], None] | None = None,
    trust_pickle: bool = False,
) -> Converted:
    """A checkpoint (of any layout) -> a directory that transformers opens as it is.

    Where `save_dir` is the original Hugging Face model, as MindSpeed-LLM's converter wants it, the
    result goes to `<save_dir>/mg2hg`, that converter's name; the original stays untouched.

    Args:
        dtype: cast to this; None keeps every bit. config.json names the dtype that is written.
        shard_bytes: largest file, where tensors allow it.
        tokenizer: directory to take the tokenizer files from, instead of the checkpoint's.
        overwrite: replace a directory that is there.
        check: given the finished directory before it gets its name; what it raises undoes it.
        trust_pickle: read checkpoints of Megatron-LM and MindSpeed-LLM, see `pickled`.

    Raises:
        CheckpointError: damaged or incomplete checkpoint, tensors that are missing, left over or of
            a wrong shape, target in use. Nothing is written then.
    """
    documents = model_directory(load_dir)
    model = read_model(documents)
    rules = expand(rules_of(model), model.num_layers)
    export = Export(hf_target(load_dir, save_dir, model, overwrite), dtype, shard_bytes, tokenizer)
    if find_foreign(load_dir) is not None:
        source, _ = open_base(load_dir, trust_pickle=trust_pickle)
        check_stored(load_dir, source, rules, model)
        return write_hf(export, source, rules, model, documents, check)
    checkpoint = find_checkpoint(load_dir)
    reader = checkpoint.reader(hashed=True)
    check_stored(checkpoint.path, reader, rules, model)
    hf = {name for name in checkpoint.files if name.startswith("hf/")}
    verify(checkpoint, hf | {COMMON}, "full")

    def checked(directory: Path) -> None:
        checkpoint.compare(reader.records())  # hashed as they were read
        if check is not None:
            check(directory)

    try:
        ordered = _in_file_order(reader, rules, model)
        return write_hf(export, reader, ordered, model, documents, checked)
    finally:
        reader.close()


@dataclasses.dataclass(frozen=True)
class Export:
    """Where a Hugging Face directory goes, and how; see `mcore_to_hf`."""

    target: Path
    dtype: torch.dtype | None = None
    shard_bytes: int = SHARD_BYTES
    tokenizer: Path | None = None


@_one_thread()
def write_hf(
    export: Export,
    source: TensorSource,
    rules: list[NameRule],
    model: ModelConfig,
    documents: Path,
    check: Callable[[Path], None] | None,
) -> Converted:
    """Weights from anywhere -> a directory that transformers opens, complete or not at all.

    Args:
        rules: every tensor of the model, in the order of writing.
        documents: directory of config.json and tokenizer.
        check: given the finished directory before it gets its name; what it raises undoes it.

    Raises:
        CheckpointError: the disk refuses, or what `source` raises. Nothing is written then.
    """
    target, dtype = export.target, export.dtype
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_beside(target)
    try:
        copy_assets(documents, staging, export.tokenizer)
        odd: dict[str, None] = {}
        tensors, nbytes = write_hf_weights(
            staging, source, rules, model, dtype, export.shard_bytes, odd
        )
        kinds = {source.tensors[global_name(rule)[0]].dtype for rule in rules}
        written = {dtype} if dtype else kinds
        if len(written) == 1 and set_dtype(staging / CONFIG, *written):
            _log.info("config.json now says %s", *written)
        HFWeights(staging).close()  # reads it back: index, names, shapes and sizes of all files
        sync_tree(staging)
        if check is not None:
            check(staging)
        put_in_place(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _warn_odd(target, odd)
    return Converted(target, tensors, nbytes, odd=tuple(odd))


def check_stored(
    where: Path, source: TensorSource, rules: list[NameRule], model: ModelConfig
) -> None:
    """Raise CheckpointError unless `source` has the tensors of the name table and no others."""
    wanted = {global_name(rule)[0]: rule for rule in rules}
    stored = {key for key, tensor in source.tensors.items() if tensor.section == "model"}
    problems = [f"missing: {key}" for key in sorted(wanted.keys() - stored)]
    problems += [f"unknown: {key}" for key in sorted(stored - wanted.keys())]
    for key in sorted(wanted.keys() & stored):
        have, want = source.tensors[key].shape, global_shape(wanted[key], model)
        padded = wanted[key].vocab and have[1:] == want[1:] and have[0] >= want[0]
        if have != want and not padded:
            problems.append(f"{key} has shape {list(have)}, expected {list(want)}")
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit config.json "
                              f"({model.family}): {'; '.join(problems[:12])}")  # fmt: skip


def _in_file_order(
    reader: ChunkReader, rules: list[NameRule], model: ModelConfig
) -> list[NameRule]:
    def position(rule: NameRule) -> tuple[str, int]:
        box = planned_of(rule, model, torch.float32)
        return reader.position(box.key, box.offset)

    return sorted(rules, key=position)


def check_hf_target(load_dir: Path, save_dir: Path, overwrite: bool = False) -> None:
    """Raise CheckpointError unless `mcore_to_hf` may write a checkpoint of `load_dir`'s model."""
    hf_target(load_dir, save_dir, read_model(model_directory(load_dir)), overwrite)


def hf_target(load_dir: Path, save_dir: Path, model: ModelConfig, overwrite: bool) -> Path:
    """Where the Hugging Face directory goes; raises unless that place is free."""
    target = save_dir
    if (save_dir / CONFIG).is_file() and not overwrite:
        original = read_model(save_dir)
        if not original.is_same_but_for_dtype(model):
            raise CheckpointError(f"{save_dir}: holds a {original.family} model of another shape "
                                  "than the checkpoint's; choose another directory")  # fmt: skip
        target = save_dir / _MG2HF
    check_apart(load_dir, target)
    if target.is_file():
        raise CheckpointError(f"{target}: is a file; expected a directory to write to")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise CheckpointError(f"{target}: not empty; choose another directory, or --overwrite "
                                  "to replace it")  # fmt: skip
        if not (target / CONFIG).is_file():
            raise CheckpointError(f"{target}: not empty and no Hugging Face model; it will not be "
                                  "replaced; choose another directory")  # fmt: skip
    return target


def write_hf_weights(
    directory: Path,
    reader: TensorSource,
    rules: list[NameRule],
    model: ModelConfig,
    dtype: torch.dtype | None,
    shard_bytes: int,
    odd: dict[str, None],
) -> tuple[int, int]:
    """Write the weight files and their index; tensors and bytes written.

    Args:
        odd: gets the names of tensors with NaN or infinite values.
    """

    def entries(rule: NameRule) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        kind = dtype or reader.tensors[global_name(rule)[0]].dtype
        shapes = hf_shapes(rule, model, mcore_shape(rule, model))
        return [(name, kind, tuple(s)) for name, s in zip(rule.hf, shapes, strict=True)]

    def size(rule: NameRule) -> int:
        return sum(torch.Size(s).numel() * kind.itemsize for _, kind, s in entries(rule))

    shards = list(_shards(rules, size, shard_bytes))
    total = sum(size(rule) for rule in rules)
    weight_map: dict[str, str] = {}
    ring = Ring()
    with ByteProgress("converting", total) as progress:
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            path = directory / (WEIGHTS if len(shards) == 1 else name)
            announced = [entry for rule in shard for entry in entries(rule)]
            writer = TensorFileWriter(path, announced, {"format": "pt"}, hashed=False)
            try:
                for rule in shard:
                    weight_map |= dict.fromkeys(rule.hf, path.name)
                    for hf_name, start, block in blocks(reader, rule, model, ring):
                        if _is_odd(block):
                            odd[hf_name] = None
                        writer.write(hf_name, block, start)
                        progress.advance(block.numel() * announced[0][1].itemsize)
                writer.finish()
            except BaseException:
                writer.abort()
                raise
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / WEIGHTS_INDEX, index)
    return len(weight_map), total


def _shards(
    rules: list[NameRule], size: Callable[[NameRule], int], limit: int
) -> Iterator[list[NameRule]]:
    shard: list[NameRule] = []
    room = limit
    for rule in rules:
        if shard and size(rule) > room:
            yield shard
            shard, room = [], limit
        shard.append(rule)
        room -= size(rule)
    yield shard
