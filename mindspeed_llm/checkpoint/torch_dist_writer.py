"""Owns writing weights as a torch_dist checkpoint, which megatron-core's dist_checkpointing loads.

torch.distributed.checkpoint writes the files; its planner interface asks for one tensor at a time,
so the largest and torch.save's copy of it are in memory. It knows neither where the weights are
from nor the final place.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from mindspeed_llm.checkpoint.assets import sync_tree
from mindspeed_llm.checkpoint.store import Fetch, Planned
from mindspeed_llm.checkpoint.tensor_file import cast
from mindspeed_llm.errors import CheckpointError

CONFIG = {"sharded_backend": "torch_dist", "sharded_backend_version": 1,
          "common_backend": "torch", "common_backend_version": 1}  # fmt: skip
# What Megatron-LM wants to know of any checkpoint: 3.0 is the order of rows in linear_qkv since
# 2020, and the metadata say how its own sharded_state_dict names layers.
_COMMON = {
    "checkpoint_version": 3.0,
    "iteration": 0,
    # Up to 0.15 its training asks these of every checkpoint: whether there are states to load.
    "args": argparse.Namespace(
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        world_size=1,
        data_parallel_size=1,
        no_save_optim=True,
        no_save_rng=True,
    ),
}
# Modules of Transformer Engine's and of the local layer specs that have an `_extra_state`; empty
# without fp8. One that a model does not have is not asked for.
_EXTRA = ("self_attention.linear_qkv", "self_attention.linear_proj",
          "self_attention.core_attention", "self_attention.q_layernorm",
          "self_attention.k_layernorm", "mlp.linear_fc1", "mlp.linear_fc2")  # fmt: skip
_LAYERS = "decoder.layers."
_EXPERTS = ".mlp.experts.experts."


def write_torch_dist(
    directory: Path,
    plan: Sequence[Planned],
    fetch: Fetch,
    *,
    num_layers: int,
    on_bytes: Callable[[int], None],
) -> None:
    """Write metadata.json, .metadata, common.pt and *.distcp into `directory`, flushed to the disk.

    Args:
        fetch: see `store.Fetch`.
        num_layers: of the model, for the names of its extra states.

    Raises:
        CheckpointError: the disk refuses.
    """
    # Nothing is asked for ahead, so that one buffer serves for all tensors.
    writer = dcp.FileSystemWriter(
        directory, single_file_per_rank=True, sync_files=True, per_thread_copy_ahead=0
    )
    planner = _Planner(plan, fetch, _extra_states(plan, num_layers), on_bytes)
    try:
        dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
        contents = {"singleton_local_shards": False, "non_homogeneous_layers": not _stacked(plan)}
        torch.save(_COMMON | {"content_metadata": contents}, directory / "common.pt")
        (directory / "metadata.json").write_text(json.dumps(CONFIG), encoding="ascii")
        sync_tree(directory)
    except OSError as err:
        raise CheckpointError(f"{directory}: cannot write ({err.strerror}); free space or choose "
                              "another disk") from err  # fmt: skip
    except dcp.CheckpointException as err:
        cause = next(iter(err.failures.values()))[0]
        if isinstance(cause, CheckpointError):
            raise cause from None
        raise CheckpointError(f"{directory}: cannot write ({cause}); free space or choose another "
                              "disk") from err  # fmt: skip


def _stacked(plan: Iterable[Planned]) -> bool:
    """Whether layers are one tensor with a leading axis; else each has names of its own."""
    keys = {planned.key for planned in plan}
    return any(key.startswith(_LAYERS) and not key[len(_LAYERS)].isdigit() for key in keys)


def _extra_states(plan: Sequence[Planned], num_layers: int) -> list[str]:
    """Keys of the empty extra states of the layers, of experts, and of the last norm."""
    stacked, names = _stacked(plan), []
    for planned in plan:
        if _EXPERTS in planned.key:  # one for each expert of each layer, as their weights have
            key = planned.key.removesuffix("weight") + "_extra_state"
            item = ShardedObject(key, None, planned.global_shape[:-2], planned.offset[:-2])
            names.append(item.unique_key)
    for layer in range(num_layers):
        for module in _EXTRA:
            if stacked:
                item = ShardedObject(
                    f"{_LAYERS}{module}._extra_state", None, (num_layers,), (layer,)
                )
            else:
                item = ShardedObject(f"{_LAYERS}{layer}.{module}._extra_state", None, (1,), (0,))
            names.append(item.unique_key)
    last = ShardedObject("decoder.final_layernorm._extra_state", None, (1,), (0,))
    return [*names, last.unique_key]


class _Planner(SavePlanner):
    """Says what is written and gives each tensor when its turn comes."""

    def __init__(
        self, plan: Sequence[Planned], fetch: Fetch, empty: Sequence[str],
        on_bytes: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._fetch, self._empty, self._on_bytes = fetch, empty, on_bytes
        self._by_place = {(p.key, p.offset): p for p in plan}
        self._buffer = np.empty(max((p.nbytes for p in plan), default=0), np.uint8)

    def set_up_planner(self, state_dict: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the plan was given."""

    def create_local_plan(self) -> SavePlan:
        """One item for each box and each empty extra state."""
        items = [
            WriteItem(MetadataIndex(key, offset), WriteItemType.SHARD, tensor_data=TensorWriteData(
                _chunk(planned), TensorProperties(planned.dtype), torch.Size(planned.global_shape)))
            for (key, offset), planned in self._by_place.items()
        ]  # fmt: skip
        items += [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in self._empty]
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """The table of contents."""
        tables: dict[str, Any] = {name: BytesStorageMetadata() for name in self._empty}
        for planned in self._by_place.values():
            size = torch.Size(planned.global_shape)
            table = tables.setdefault(
                planned.key, TensorStorageMetadata(TensorProperties(planned.dtype), size, [])
            )
            table.chunks.append(_chunk(planned))
        return all_plans, Metadata(tables)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """Nothing is moved between ranks."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The tensor of an item, or an extra state as megatron-core writes it: [None]."""
        if write_item.type == WriteItemType.BYTE_IO:
            stream = io.BytesIO()
            torch.save([None], stream)
            return stream
        index = write_item.index
        assert index.offset is not None
        planned = self._by_place[index.fqn, tuple(index.offset)]
        count = math.prod(planned.shape)
        flat, start = torch.frombuffer(self._buffer, dtype=planned.dtype, count=count), 0
        for piece in self._fetch(planned):
            flat[start : start + piece.numel()] = cast(piece, planned.dtype, planned.key).view(-1)
            start += piece.numel()
            self._on_bytes(piece.numel() * planned.dtype.itemsize)
        return flat.view(planned.shape)


def _chunk(planned: Planned) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(planned.offset), torch.Size(planned.shape))
