"""Owns the way between megatron-core's sharded state dicts and the chunk store.

A ShardedTensor is a view of one box of a global tensor; saving writes the boxes of the main
replicas, loading fills any boxes from any. It knows neither directories nor what is trained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import (
    dict_list_map_outplace,
    extract_matching_values,
    merge,
    nested_values,
)
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedBase,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
    apply_factories,
    apply_factory_merges,
    is_main_replica,
)
from megatron.core.dist_checkpointing.utils import extract_nonpersistent, extract_sharded_base

from mindspeed_llm.checkpoint import ranks
from mindspeed_llm.checkpoint.progress import ByteProgress
from mindspeed_llm.checkpoint.store import (
    Box,
    Planned,
    Stored,
    TensorSource,
    write_chunks,
)
from mindspeed_llm.checkpoint.tensor_file import FileRecord
from mindspeed_llm.errors import CheckpointError

_SHOWN = 12  # names listed in a message, of each kind


@dataclasses.dataclass(frozen=True)
class Piece:
    """One box of a global tensor that this rank holds.

    Attributes:
        data: view of the local tensor with the box's shape; loading writes through it.
        elastic: axis 0 is a padded vocabulary, whose global size may differ in the store.
    """

    planned: Planned
    data: torch.Tensor
    elastic: bool = False


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """Boxes that together are elements `start` ... `stop` of a row-major tensor, in that order.

    Each box is contiguous, so consecutive parts of a flat buffer can be viewed as the boxes.
    """
    if start >= stop:
        return []
    if len(shape) <= 1:
        return [((start,) * len(shape), (stop - start,) * len(shape))]
    row = math.prod(shape[1:])
    boxes: list[Box] = []
    first, last = -(-start // row), stop // row
    if start % row:
        end = min(stop, first * row)
        boxes += _in_row(first - 1, shape[1:], start, end)
        if end == stop:
            return boxes
    if last > first:
        boxes.append(((first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:])))
    if stop % row:
        boxes += _in_row(last, shape[1:], last * row, stop)
    return boxes


def _in_row(number: int, shape: Sequence[int], start: int, stop: int) -> list[Box]:
    base = number * math.prod(shape)
    inner = flat_boxes(shape, start - base, stop - base)
    return [((number, *offset), (1, *size)) for offset, size in inner]


def pieces_of(tensor: ShardedTensor, section: str) -> list[Piece]:
    """The box of one ShardedTensor, as a view of its data."""
    assert tensor.flattened_range is None, f"{tensor.key}: flattened"
    local = tuple(tensor.local_shape)
    return [_piece(tensor, tensor.data, (0,) * len(local), local, tensor.key, section)]


def flat_pieces(
    tensor: ShardedTensor, flat: torch.Tensor, start: int, key: str, section: str
) -> list[Piece]:
    """Boxes of elements `start` ... of the local tensor that `tensor` describes.

    Args:
        flat: the values of these elements, one-dimensional, of any dtype (optimizer state).
        key: global name under which they are stored.
    """
    pieces, position = [], 0
    for offset, shape in flat_boxes(tuple(tensor.local_shape), start, start + flat.numel()):
        count = math.prod(shape)
        data = flat[position : position + count].view(shape)
        pieces.append(_piece(tensor, data, offset, shape, key, section))
        position += count
    return pieces


def _piece(
    tensor: ShardedTensor,
    data: torch.Tensor,
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    key: str,
    section: str,
) -> Piece:
    """The box at `offset` of the local tensor, with the leading axes that only its key has."""
    lead = tensor.prepend_axis_num
    inner = (0,) * lead + tuple(offset)
    begin = tuple(a + b for a, b in zip(tensor.global_offset, inner, strict=True))
    full = (1,) * lead + tuple(shape)
    planned = Planned(key, section, tuple(tensor.global_shape), data.dtype, begin, full)
    view = data.detach()[(None,) * lead] if lead else data.detach()
    return Piece(planned, view, bool(tensor.allow_shape_mismatch))


@dataclasses.dataclass
class ToSave:
    """What this rank contributes to a checkpoint.

    Attributes:
        pieces: boxes of which this rank is the main replica.
        objects: sharded objects of which it is the main replica, by unique key.
        common: everything that is not sharded, as the state dict has it.
    """

    pieces: list[Piece]
    objects: dict[str, Any]
    common: dict[str, Any]


def split_for_saving(state: dict[str, Any], section: str) -> ToSave:
    """Take a sharded state dict apart (it is changed: factories are applied).

    Raises:
        CheckpointError: an extra state that is not empty (Transformer Engine's fp8 state is a
            pickle; it is not stored).
    """
    apply_factories(state)
    _, persistent = extract_nonpersistent(state)
    sharded, common = extract_sharded_base(persistent)
    pieces: list[Piece] = []
    objects: dict[str, Any] = {}
    for item in nested_values(sharded):
        if not is_main_replica(item.replica_id):
            continue
        if isinstance(item, ShardedTensor):
            pieces += pieces_of(item, section)
        elif _is_extra_state(item.key):
            if not _is_empty(item.data):
                raise CheckpointError(f"{item.key}: holds a pickled extra state (fp8?), which a "
                                      "checkpoint without pickles cannot keep")  # fmt: skip
        else:
            objects[item.unique_key] = item.data
    return ToSave(pieces, objects, common)


def _is_extra_state(key: str) -> bool:
    return key.endswith("_extra_state")


def _is_empty(data: Any) -> bool:
    return data is None or (isinstance(data, torch.Tensor) and data.numel() == 0)


def write_pieces(
    directory: Path,
    prefix: str,
    pieces: Iterable[Piece],
    on_bytes: Callable[[int], None] | None = None,
) -> tuple[list[FileRecord], dict[str, Stored]]:
    """Write pieces through the store, one tensor in CPU memory at a time; see `write_chunks`."""
    by_name = {piece.planned.name: piece for piece in pieces}
    return write_chunks(
        directory,
        prefix,
        [piece.planned for piece in by_name.values()],
        lambda planned: (by_name[planned.name].data,),
        on_bytes=on_bytes,
    )


def check_request(
    pieces: Iterable[Piece],
    source: TensorSource,
    section: str,
    *,
    cast: bool,
    vocab_size: int | None,
) -> None:
    """Compare what all ranks ask for with what the source has, before anything is changed.

    Args:
        cast: accept another floating-point dtype than the stored one.
        vocab_size: rows that an elastic tensor must have on both sides.

    Raises:
        CheckpointError: on every rank, with the names that are missing, left over or different.
    """
    problems: list[str] = []
    asked: dict[str, bool] = {}
    for piece in pieces:
        key = piece.planned.key
        if key not in asked:
            asked[key] = key in source.tensors
            if asked[key]:
                problems += _difference(piece, source.tensors[key], cast, vocab_size)
    everywhere = ranks.gather([list(asked), problems])
    wanted = {key for keys, _ in everywhere for key in keys}
    there = {key for key, stored in source.tensors.items() if stored.section == section}
    different = sorted({text for _, texts in everywhere for text in texts})
    lines = [
        *_listed("missing in the checkpoint", sorted(wanted - set(source.tensors))),
        *_listed("in the checkpoint, but not in this model", sorted(there - wanted)),
        *_listed("different", different),
    ]
    if lines:
        raise CheckpointError(f"the checkpoint does not fit this {section}: " + "; ".join(lines))


def _difference(piece: Piece, stored: Stored, cast: bool, vocab_size: int | None) -> list[str]:
    want = piece.planned
    same = want.global_shape == stored.shape
    if piece.elastic and not same and want.global_shape[1:] == stored.shape[1:]:
        rows = min(want.global_shape[0], stored.shape[0])
        same = vocab_size is not None and rows >= vocab_size
    if not same:
        return [f"{want.key}: stored with shape {list(stored.shape)}, the model has "
                f"{list(want.global_shape)}"]  # fmt: skip
    castable = cast and want.dtype.is_floating_point and stored.dtype.is_floating_point
    if want.dtype != stored.dtype and not castable:
        return [f"{want.key}: stored as {stored.dtype}, expected {want.dtype}"]
    return []


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"]


def fill(
    pieces: Iterable[Piece],
    source: TensorSource,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Fill pieces from the source through their views; padding rows become zero."""
    for piece in pieces:
        want = piece.planned
        if piece.elastic and source.tensors[want.key].shape != want.global_shape:
            with torch.no_grad():
                piece.data.zero_()
        source.read(want.key, want.offset, piece.data)
        if on_bytes:
            on_bytes(want.nbytes)


@contextlib.contextmanager
def reading(what: str, pieces: Iterable[Piece]) -> Iterator[Callable[[int], None]]:
    """Progress of reading `pieces`, and one end for all ranks when one cannot; gives `on_bytes`."""
    total = sum(piece.planned.nbytes for piece in pieces)
    with ranks.together(f"loading {what}"), ByteProgress(f"loading {what}", total) as progress:
        yield progress.advance


class InPlace:
    """Modules' sharded state dicts, to be filled in place, one tensor at a time."""

    def __init__(self, states: Sequence[Mapping[str, Any]], section: str) -> None:
        self._groups: list[tuple[list[Piece], ShardedTensorFactory | None, Any]] = []
        for state in states:
            for item in nested_values(dict(state)):
                if isinstance(item, ShardedTensorFactory):
                    built = item.build()
                    tensors = [built] if isinstance(built, ShardedTensor) else nested_values(built)
                    pieces = [p for tensor in tensors for p in pieces_of(tensor, section)]
                    self._groups.append((pieces, item, built))
                elif isinstance(item, ShardedTensor):
                    self._groups.append((pieces_of(item, section), None, None))
                elif not (isinstance(item, ShardedObject) and _is_extra_state(item.key)):
                    raise CheckpointError(f"{item!r:.200}: no tensor; a model holds tensors only")

    @property
    def pieces(self) -> list[Piece]:
        return [piece for pieces, _, _ in self._groups for piece in pieces]

    def fill(self, source: TensorSource, on_bytes: Callable[[int], None] | None = None) -> None:
        """Read every tensor; a factory's parts are merged back into the tensor they are made of."""
        for pieces, factory, built in self._groups:
            fill(pieces, source, on_bytes)
            if factory is not None:
                loaded = dict_list_map_outplace(lambda tensor: tensor.data, built)
                with torch.no_grad():
                    factory.data.copy_(factory.merge_fn(loaded))


def load_tree(
    request: dict[str, Any],
    source: TensorSource,
    section: str,
    *,
    common: dict[str, Any],
    objects: Mapping[str, Any],
    vocab_size: int | None,
) -> dict[str, Any]:
    """Load a sharded state dict of any shape (the optimizer's); the result has plain values.

    Args:
        request: what `sharded_state_dict(is_loading=True)` gave; its tensors are filled.
        common: the unsharded part that was saved; `objects`: sharded objects by unique key.
        vocab_size: see `check_request`.

    Raises:
        CheckpointError: names missing, left over, or of another shape or dtype; on every rank.
    """
    # A copy of the containers, since the factories are needed once more after they are applied.
    state, _ = extract_matching_values(request, lambda value: True)
    factories, _ = extract_matching_values(
        state, lambda value: isinstance(value, ShardedTensorFactory), return_lists_as_dicts=True
    )
    apply_factories(state)
    local, persistent = extract_nonpersistent(state)
    sharded, _ = extract_sharded_base(persistent)
    tensors = [item for item in nested_values(sharded) if isinstance(item, ShardedTensor)]
    for tensor in tensors:
        tensor.init_data("cpu")
    pieces = [piece for tensor in tensors for piece in pieces_of(tensor, section)]
    check_request(pieces, source, section, cast=False, vocab_size=vocab_size)
    with reading(section, pieces) as on_bytes:
        fill(pieces, source, on_bytes)

    def loaded(item: ShardedBase) -> Any:
        if isinstance(item, ShardedTensor):
            return item.data
        assert isinstance(item, ShardedObject), item
        if _is_extra_state(item.key):
            return item.data
        if item.unique_key not in objects:
            raise CheckpointError(f"{item.unique_key} is missing in the checkpoint")
        return objects[item.unique_key]

    result = merge(common, dict_list_map_outplace(loaded, sharded))
    result = merge(result, dict_list_map_outplace(LocalNonpersistentObject.unwrap, local))
    return apply_factory_merges(result, factories)
