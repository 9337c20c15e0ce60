"""Owns reading megatron-core's torch_dist checkpoints, which torch.distributed.checkpoint writes.

The table of contents is read as inert data, tensors by torch's weights_only loader; common.pt
(arguments, schedule) and the optimizer's state are left alone. It knows no model.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint import inert_pickle, pickled
from mindspeed_llm.checkpoint.inert_pickle import Made, Name
from mindspeed_llm.checkpoint.store import Chunk, ChunkReader, Stored, check_cover
from mindspeed_llm.checkpoint.tensor_file import DTYPES
from mindspeed_llm.errors import CheckpointError

METADATA, CONFIG = ".metadata", "metadata.json"
_DTYPES = {str(dtype): dtype for dtype in DTYPES.values()}
_LAYER = re.compile(r"decoder\.layers\.([0-9]{1,6})\.(.+)")
# Of a training run, beside the model: they are not read.
_OTHERS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine", "opt_param_scheduler",
           "dataloader")  # fmt: skip


class TorchDistReader(ChunkReader):
    """The model of a torch_dist checkpoint, as a `TensorSource`.

    Args:
        directory: with .metadata, metadata.json and *.distcp.
        trusted: the user said --trust-pickle.

    Raises:
        CheckpointError: not trusted, damaged, of another version, or a hostile file name.
    """

    def __init__(self, directory: Path, *, trusted: bool) -> None:
        where = directory / METADATA
        pickled.check_trusted(where, trusted)
        _check_config(directory / CONFIG)
        if where.stat().st_size > inert_pickle.LIMIT:
            raise CheckpointError(f"{where}: {where.stat().st_size} bytes; too large")
        contents = inert_pickle.read(where.read_bytes(), str(where))
        super().__init__(directory, _stacked(_index(contents, str(where)), str(where)))
        self._last: tuple[Chunk | None, torch.Tensor] = (None, torch.empty(0))

    def _part(
        self, stored: Stored, chunk: Chunk, offset: tuple[int, ...], out: torch.Tensor
    ) -> None:
        if self._last[0] != chunk:
            self._last = (None, torch.empty(0))  # one in memory
            self._last = (chunk, self._load(stored, chunk))
        box = tuple(slice(o, o + n) for o, n in zip(offset, out.shape, strict=True))
        out.copy_(self._last[1].reshape(chunk.shape)[box])

    def _load(self, stored: Stored, chunk: Chunk) -> torch.Tensor:
        path = self.directory / chunk.file
        begin, length = map(int, chunk.name.split(":"))
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if begin + length > path.stat().st_size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, but {METADATA} promises "
                                  f"{begin + length}: not copied to the end")  # fmt: skip
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, begin)
            while len(data) < length:  # a single read ends at 2 GiB
                data += os.pread(file.fileno(), length - len(data), begin + len(data))
        tensor = pickled.load(io.BytesIO(data), path)
        if not isinstance(tensor, torch.Tensor) or (tensor.dtype, tensor.numel()) != (
            stored.dtype,
            math.prod(chunk.shape),
        ):
            raise CheckpointError(f"{path}: at byte {begin} is no tensor of {stored.dtype} "
                                  f"{list(chunk.shape)}, which {METADATA} promises")  # fmt: skip
        return tensor.detach()


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes()[: 2**20])
        backend, version = config["sharded_backend"], config["sharded_backend_version"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as err:
        raise CheckpointError(f"{path}: malformed ({err!r:.120})") from None
    if (backend, version) != ("torch_dist", 1):
        raise CheckpointError(f"{path}: written as {backend!r:.40} {version!r:.20}; torch_dist "
                              "version 1 is read")  # fmt: skip


def _index(contents: Any, where: str) -> dict[str, Stored]:
    """Tensors of the model and where their boxes lie, from the inert Metadata."""
    try:
        state = contents.state
        places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
        for key, value in state["storage_data"].items():
            offset = key.state.get("offset")
            if offset is not None:
                info = value.state
                places[key.state["fqn"], _sizes(offset)] = (
                    _file(info["relative_path"]), _natural(info["offset"]),
                    _natural(info["length"]))  # fmt: skip
                if info.get("transform_descriptors"):
                    raise ValueError(f"{key.state['fqn']} is compressed")
        index = {}
        for name, value in state["state_dict_metadata"].items():
            kind = value.what.name
            if kind not in ("TensorStorageMetadata", "BytesStorageMetadata"):
                raise ValueError(f"{name!r:.80} is a {kind}")
            if kind == "BytesStorageMetadata" or name.startswith(_OTHERS):
                continue
            index[name] = _stored(name, value.state, places)
    except (KeyError, TypeError, AttributeError, ValueError) as err:
        raise CheckpointError(f"{where}: not the table of contents of a torch_dist checkpoint "
                              f"({err!r:.200})") from None  # fmt: skip
    return index


def _stored(
    name: str,
    state: Mapping[str, Any],
    places: Mapping[tuple[str, tuple[int, ...]], tuple[str, int, int]],
) -> Stored:
    properties = state["properties"].state
    dtype = properties[0] if isinstance(properties, tuple) else properties["dtype"]
    assert isinstance(dtype, Name), "a dtype without name"
    chunks = []
    for chunk in state["chunks"]:
        offset = _sizes(chunk.state["offsets"])
        file, begin, length = places[name, offset]
        chunks.append(Chunk(file, f"{begin}:{length}", offset, _sizes(chunk.state["sizes"])))
    kind = _DTYPES[f"{dtype.module}.{dtype.name}"]
    return Stored("model", _sizes(state["size"]), kind, tuple(chunks))


def _stacked(index: dict[str, Stored], where: str) -> dict[str, Stored]:
    """Layers under names of their own as one tensor with a leading axis, where all are alike.

    megatron-core has the one or the other, as `non_homogeneous_layers` says.
    """
    by_name: dict[str, dict[int, Stored]] = {}
    for key, stored in index.items():
        if match := _LAYER.fullmatch(key):
            by_name.setdefault(match[2], {})[int(match[1])] = stored
    layers = {number for table in by_name.values() for number in table}
    alike = all(
        set(table) == set(range(len(layers))) and len({(s.shape, s.dtype) for s in table.values()})
        == 1 for table in by_name.values()
    )  # fmt: skip
    if layers and alike:
        index = {key: stored for key, stored in index.items() if not _LAYER.fullmatch(key)}
        for name, table in by_name.items():
            chunks = tuple(
                Chunk(c.file, c.name, (number, *c.offset), (1, *c.shape))
                for number, stored in sorted(table.items())
                for c in stored.chunks
            )
            shape = (len(layers), *table[0].shape)
            index[f"decoder.layers.{name}"] = Stored("model", shape, table[0].dtype, chunks)
    for key, stored in index.items():
        check_cover(f"{where}: {key}", stored)
    return index


def _sizes(value: Any) -> tuple[int, ...]:
    """The numbers of a torch.Size."""
    if isinstance(value, Made) and value.what == Name("torch", "Size"):
        (value,) = value.args
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"expected sizes, found {value!r:.80}")
    return tuple(map(_natural, value))


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a size, found {value!r:.80}")
    return value


def _file(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}\.distcp", value):
        raise ValueError(f"expected the name of a .distcp file, found {value!r:.80}")
    return value
