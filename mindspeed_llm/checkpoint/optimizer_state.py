"""Owns what of megatron-core's optimizers goes into a checkpoint and how it comes back.

Experts have an optimizer of their own with expert parallelism, so there may be several.
The distributed optimizer's state is written where it lies: each rank its own flat parts, mapped to
boxes of the parameters' global tensors. Nothing is gathered, and any TP, PP and DP loads it.
megatron-core's own "fully_reshardable" format gathers everything on each rank, and mixes up the
parameters when a gradient buffer has several buckets with padding between them (0.15.3, 0.16.1: a
tied embedding with PP 2 is enough). It knows neither files nor directories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    ShardedTensorFactory,
    is_main_replica,
)
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from mindspeed_llm.checkpoint.sharded import (
    Piece,
    ToSave,
    check_request,
    fill,
    flat_pieces,
    load_tree,
    reading,
    split_for_saving,
)
from mindspeed_llm.checkpoint.store import TensorSource
from mindspeed_llm.errors import CheckpointError

SECTION = "optimizer"
ModelStates = Mapping[str, Mapping[str, Any]]
"""Sharded state dicts of this rank's model chunks, by any names; their data are the parameters."""


def parts_of(optimizer: MegatronOptimizer | None) -> list[MegatronOptimizer]:
    """The optimizers that a chained one consists of; none for None."""
    if optimizer is None:
        return []
    return list(optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer)
                else [optimizer])  # fmt: skip


def kinds(optimizer: MegatronOptimizer | None) -> list[str]:
    """Class names of the parts; a checkpoint loads into the same kinds only."""
    return [type(part).__name__ for part in parts_of(optimizer)]


def to_save(optimizer: MegatronOptimizer, model: ModelStates) -> ToSave:
    """This rank's share; `common` is a list with one entry for each part."""
    pieces: list[Piece] = []
    objects: dict[str, Any] = {}
    common: list[Any] = []
    for part in parts_of(optimizer):
        if isinstance(part, DistributedOptimizer):
            pieces += _distributed_pieces(part, model, main_only=True)
            common.append(part.state_dict())
        else:
            state = part.sharded_state_dict(dict(model), is_loading=False)
            share = split_for_saving(state, SECTION)
            pieces += share.pieces
            objects |= share.objects
            common.append(share.common)
    return ToSave(pieces, objects, {"parts": common})


def load(
    optimizer: MegatronOptimizer,
    model: ModelStates,
    source: TensorSource,
    *,
    common: dict[str, Any],
    objects: Mapping[str, Any],
    vocab_size: int,
) -> None:
    """Restore what `to_save` gave, at any layout; every rank calls it.

    Raises:
        CheckpointError: state that is missing, left over, or of another shape or dtype.
    """
    parts, saved = parts_of(optimizer), common["parts"]
    if not all(isinstance(part, DistributedOptimizer) for part in parts):
        _load_whole(parts, model, source, saved, objects, vocab_size)
        return
    pieces: list[Piece] = []
    for number, part in enumerate(parts):
        state = saved[number] if len(saved) == len(parts) else _regrouped(part, saved)
        part.load_state_dict(state)  # step and settings; makes room for the tensors
        pieces += _distributed_pieces(part, model, main_only=False)
    check_request(pieces, source, SECTION, cast=False, vocab_size=vocab_size)
    with reading(SECTION, pieces) as on_bytes:
        fill(pieces, source, on_bytes)


def _load_whole(
    parts: Sequence[MegatronOptimizer],
    model: ModelStates,
    source: TensorSource,
    saved: Sequence[Any],
    objects: Mapping[str, Any],
    vocab_size: int,
) -> None:
    """Optimizers that are not distributed: together, since each names only its own parameters."""
    if len(saved) != len(parts):
        raise CheckpointError(
            f"the optimizer was saved in {len(saved)} parts and has {len(parts)} now: experts have "
            "one of their own with expert parallelism only; use the --expert-model-parallel-size "
            "it was saved with, or --use-distributed-optimizer in both runs"
        )
    request = {
        f"part{number}": part.sharded_state_dict(dict(model), is_loading=True)
        for number, part in enumerate(parts)
    }
    common = {f"part{number}": state for number, state in enumerate(saved)}
    loaded = load_tree(
        request, source, SECTION, common=common, objects=objects, vocab_size=vocab_size
    )
    for number, part in enumerate(parts):
        part.load_state_dict(loaded[f"part{number}"])


def _regrouped(part: DistributedOptimizer, saved: Sequence[Any]) -> dict[str, Any]:
    """State of `part` without tensors, from that of other parts: experts have an optimizer of their
    own with expert parallelism only. Groups of the same multipliers have the same settings."""
    groups = {
        (group["wd_mult"], group["lr_mult"]): group
        for state in saved
        for group in state["optimizer"]["param_groups"]
    }
    own = part.state_dict()
    for group in own["optimizer"]["param_groups"]:
        found = groups[group["wd_mult"], group["lr_mult"]]
        group |= {name: value for name, value in found.items() if name != "is_expert_parallel"}
    return own


def _distributed_pieces(
    part: DistributedOptimizer, model: ModelStates, *, main_only: bool
) -> list[Piece]:
    """Boxes of all state tensors that this data-parallel rank holds, as views of them."""
    if part.config.use_precision_aware_optimizer:
        raise CheckpointError("the precision-aware optimizer keeps scaled states, which are not "
                              "stored; switch it off")  # fmt: skip
    sharded = {id(item.data): item for state in model.values() for item in nested_values(state)
               if isinstance(item, ShardedTensor | ShardedTensorFactory)}  # fmt: skip
    pieces: list[Piece] = []
    for parameter, start, stop in _shards(part):
        states = part._get_main_param_and_optimizer_states(parameter)
        for tensor, begin in _regions(sharded[id(parameter)], parameter):
            # The last coordinate counts data-parallel replicas, and this rank's part has none.
            replica = (*tensor.replica_id[:-1], part.distributed_optimizer_instance_id)
            if main_only and not is_main_replica(replica):
                continue
            low = max(start, begin)
            high = min(stop, begin + tensor.data.numel())
            for name, values in states.items():
                if low < high and name != "step":
                    name = "fp32_param" if name == "param" else name
                    flat = values.detach().view(-1)[low - start : high - start]
                    pieces += flat_pieces(
                        tensor, flat, low - begin, f"{SECTION}.state.{name}.{tensor.key}", SECTION
                    )
    return pieces


def _shards(part: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, int]]:
    """Each parameter of which this rank owns elements `start` ... `stop` (of the flat tensor)."""
    for buffer in part.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def _regions(
    item: ShardedTensor | ShardedTensorFactory, parameter: torch.Tensor
) -> list[tuple[ShardedTensor, int]]:
    """The sharded tensors of one parameter, and at which of its elements each begins."""
    if isinstance(item, ShardedTensor):
        return [(item, 0)]
    built: Sequence[ShardedTensor] = list(nested_values(item.build()))
    regions = []
    for tensor in built:
        begin = tensor.data.storage_offset() - parameter.storage_offset()
        shares = tensor.data.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
        if not (shares and tensor.data.is_contiguous()):
            raise CheckpointError(f"{item.key}: its parts are no consecutive rows of the weight; "
                                  "the distributed optimizer's state cannot be stored")  # fmt: skip
        regions.append((tensor, begin))
    return regions
