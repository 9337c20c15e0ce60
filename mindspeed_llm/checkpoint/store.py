"""Owns the chunk store: global tensors kept as boxes in safetensors files, and the index of them.

A global tensor is written in boxes by whoever holds them and read in any other boxes, so a
checkpoint does not depend on the parallel layout. It knows neither megatron-core nor models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch

from mindspeed_llm.checkpoint.tensor_file import (
    DTYPE_NAMES,
    DTYPES,
    FileRecord,
    RunningHash,
    TensorFile,
    TensorFileWriter,
)
from mindspeed_llm.errors import CheckpointError

MAX_FILE_BYTES = 8 * 2**30
_OPEN_FILES = 32

Fetch = Callable[["Planned"], Iterable[torch.Tensor]]
"""Gives the elements of a box in their order, in one or more tensors of any shape and device; they
are cast to the planned dtype. How long they must last: see `TensorFileWriter.write`."""

Box = tuple[tuple[int, ...], tuple[int, ...]]  # (offset, shape) in elements of the global tensor


@dataclasses.dataclass(frozen=True)
class Planned:
    """One box about to be written: which global tensor, how large that is, and where the box lies.

    `section` groups tensors that are loaded together: "model", "optimizer", "rng", "objects".
    """

    key: str
    section: str
    global_shape: tuple[int, ...]
    dtype: torch.dtype
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name within the file: `key@o0,o1,...`."""
        return f"{self.key}@{','.join(map(str, self.offset))}"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One written box of a global tensor."""

    file: str
    name: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A global tensor of a store; `partial`: it need not be whole, as the optimizer's state of
    layers of which some are frozen."""

    section: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...] = ()
    partial: bool = False


class TensorSource(Protocol):
    """Anything that global tensors can be read from, box by box."""

    tensors: Mapping[str, Stored]

    def read(self, key: str, offset: Sequence[int], out: torch.Tensor) -> None:
        """Fill `out` with the box of `key` that begins at `offset`; casts to `out`'s dtype."""
        ...


def overlap(first: Box, second: Box) -> Box | None:
    """The box that two boxes share, or None."""
    begin = tuple(max(a, b) for a, b in zip(first[0], second[0], strict=True))
    end = (min(a + m, b + n) for a, m, b, n in zip(*first, *second, strict=True))
    shape = tuple(e - b for b, e in zip(begin, end, strict=True))
    return None if any(size <= 0 for size in shape) else (begin, shape)


def write_chunks(
    directory: Path,
    prefix: str,
    plan: Iterable[Planned],
    fetch: Fetch,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    on_bytes: Callable[[int], None] | None = None,
) -> tuple[list[FileRecord], dict[str, Stored]]:
    """Write the planned boxes into `<prefix>-NNN.safetensors` files below `directory`.

    Args:
        fetch: called once for each box, in the order of writing.
        on_bytes: told the bytes of each piece.

    Returns:
        the files, and this writer's part of the index.

    Raises:
        CheckpointError: the disk refuses.
    """
    # Wide dtypes first keep every tensor aligned to its element size.
    ordered = sorted(plan, key=lambda p: -p.dtype.itemsize)
    records: list[FileRecord] = []
    chunks: dict[str, list[Chunk]] = {}
    stored: dict[str, Stored] = {}
    for number, group in enumerate(_groups(ordered, max_file_bytes)):
        path = directory / f"{prefix}-{number:03d}.safetensors"
        writer = TensorFileWriter(path, [(p.name, p.dtype, p.shape) for p in group])
        try:
            for planned in group:
                for piece, start in _placed(fetch(planned)):
                    writer.write(planned.name, piece, start)
                    if on_bytes:
                        on_bytes(piece.numel() * planned.dtype.itemsize)
                chunk = Chunk(path.name, planned.name, planned.offset, planned.shape)
                chunks.setdefault(planned.key, []).append(chunk)
                stored[planned.key] = Stored(planned.section, planned.global_shape, planned.dtype)
            records.append(writer.finish())
        except BaseException:
            writer.abort()
            raise
    index = {k: dataclasses.replace(s, chunks=tuple(chunks[k])) for k, s in stored.items()}
    return records, index


def _placed(pieces: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int]]:
    """Each piece and the number of elements before it."""
    start = 0
    for piece in pieces:
        yield piece, start
        start += piece.numel()


def _groups(plan: Sequence[Planned], limit: int) -> list[list[Planned]]:
    groups: list[list[Planned]] = []
    room = 0
    for planned in plan:
        if not groups or planned.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(planned)
        room -= planned.nbytes
    return groups


def merge_indexes(
    parts: Iterable[Mapping[str, Stored]], partial: Callable[[str], bool] = lambda key: False
) -> dict[str, Stored]:
    """One index of all writers' parts; every tensor must be covered exactly once.

    Args:
        partial: says of a key that its tensor may have holes.

    Raises:
        CheckpointError: writers disagree on a tensor, or its boxes overlap or leave a hole.
    """
    merged: dict[str, Stored] = {}
    for part in parts:
        for key, new in part.items():
            old = merged.setdefault(key, dataclasses.replace(new, chunks=()))
            if (old.section, old.shape, old.dtype) != (new.section, new.shape, new.dtype):
                raise CheckpointError(f"{key}: one rank holds {old.dtype} {old.shape}, another "
                                      f"{new.dtype} {new.shape}")  # fmt: skip
            merged[key] = dataclasses.replace(
                old, chunks=old.chunks + new.chunks, partial=partial(key)
            )
    for key, stored in merged.items():
        check_cover(key, stored)
    return merged


def check_cover(key: str, stored: Stored) -> None:
    """Raise CheckpointError unless the boxes of `stored` cover it exactly once (or `partial`)."""
    whole: Box = ((0,) * len(stored.shape), stored.shape)
    chunks = sorted(stored.chunks, key=lambda c: c.offset)
    for number, chunk in enumerate(chunks):
        box = (chunk.offset, chunk.shape)
        if math.prod(chunk.shape) and overlap(box, whole) != box:
            raise CheckpointError(f"{key}: box {box} lies outside the tensor {stored.shape}")
        for other in chunks[number + 1 :]:
            if stored.shape and other.offset[0] >= chunk.offset[0] + chunk.shape[0]:
                break  # sorted by the first axis: nothing later can touch this box
            if overlap(box, (other.offset, other.shape)):
                raise CheckpointError(f"{key}: boxes at {chunk.offset} and {other.offset} overlap")
    covered, size = sum(math.prod(c.shape) for c in chunks), math.prod(stored.shape)
    if covered != size and not stored.partial:
        raise CheckpointError(f"{key}: {covered} of its {size} elements are there")


def index_to_json(index: Mapping[str, Stored]) -> dict[str, Any]:
    """JSON form of an index."""
    return {
        key: {
            "section": stored.section,
            "shape": list(stored.shape),
            "dtype": DTYPE_NAMES[stored.dtype],
            "chunks": [
                {"file": c.file, "name": c.name, "offset": list(c.offset), "shape": list(c.shape)}
                for c in stored.chunks
            ],
        }
        | ({"partial": True} if stored.partial else {})
        for key, stored in index.items()
    }


def index_from_json(data: Any, where: str, *, whole: bool = True) -> dict[str, Stored]:
    """Inverse of `index_to_json`, trusting nothing; `whole`: every tensor must be covered.

    Raises:
        CheckpointError: malformed, a path instead of a file name, or boxes that do not tile.
    """
    try:
        index = {
            str(key): Stored(
                str(value["section"]),
                _sizes(value["shape"]),
                DTYPES[value["dtype"]],
                tuple(
                    Chunk(_file_name(c["file"]), str(c["name"]), _sizes(c["offset"]),
                          _sizes(c["shape"]))
                    for c in value["chunks"]
                ),
                value.get("partial") is True,
            )
            for key, value in data.items()
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise CheckpointError(f"{where}: malformed index ({err!r:.200})") from None
    for key, stored in index.items():
        if any(len(c.offset) != len(stored.shape) or len(c.shape) != len(stored.shape)
               for c in stored.chunks):  # fmt: skip
            raise CheckpointError(f"{where}: {key} has boxes of another rank than {stored.shape}")
        if whole:
            check_cover(key, stored)
    return index


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"expected a list of sizes, found {value!r:.80}")
    return tuple(value)


def _file_name(value: Any) -> str:
    if (
        not isinstance(value, str)
        or not value.endswith(".safetensors")
        or Path(value).name != value
    ):
        raise ValueError(f"expected the name of a .safetensors file, found {value!r:.80}")
    return value


class ChunkReader:
    """Reads boxes of global tensors out of a directory of chunks; a `TensorSource`.

    Args:
        hashed: hash the files as they are read, for `records`; a box must not be read into the
            memory of the one before it, which may still be hashed.
    """

    def __init__(
        self, directory: Path, index: Mapping[str, Stored], *, hashed: bool = False
    ) -> None:
        self.directory = directory
        self.tensors: Mapping[str, Stored] = index
        self._files: dict[str, TensorFile] = {}
        self._hasher = ThreadPoolExecutor(1, "chunk-hasher") if hashed else None
        self._hashes: dict[str, RunningHash] = {}
        self._lines: dict[str, dict[tuple[int, int], list[Chunk]]] = {}

    def position(self, key: str, offset: Sequence[int]) -> tuple[str, int]:
        """File and byte where the chunk with the element at `offset` of `key` begins: to read in
        this order is to read the files from end to end."""
        point: Box = (tuple(offset), (1,) * len(offset))
        near = self._near(key, offset[0], offset[0] + 1) if offset else self.tensors[key].chunks
        chunk = next(chunk for chunk in near if overlap(point, (chunk.offset, chunk.shape)))
        return chunk.file, self._checked(self.tensors[key], chunk).entries[chunk.name].begin

    def records(self) -> list[FileRecord]:
        """Size and sha256 of the files that were read from; what was not read of them is read now.

        Raises:
            CheckpointError: a file cannot be read.
        """
        try:
            return [self._hashes[n].finish(self.directory / n) for n in sorted(self._hashes)]
        except OSError as err:
            raise CheckpointError(f"{self.directory}: cannot read ({err})") from err

    def _near(self, key: str, begin: int, end: int) -> Iterator[Chunk]:
        """The chunks of `key` that may touch rows `begin` ... `end` of the first axis: the experts
        of a large model are thousands, read one by one."""
        if key not in self._lines:
            lines = self._lines[key] = {}
            for chunk in self.tensors[key].chunks:
                lines.setdefault((chunk.offset[0], chunk.shape[0]), []).append(chunk)
        for (first, count), chunks in self._lines[key].items():
            if first < end and begin < first + count:
                yield from chunks

    def read(self, key: str, offset: Sequence[int], out: torch.Tensor) -> None:
        """Fill `out` with the box of `key` at `offset`, reading only the bytes of that box.

        Raises:
            CheckpointError: a file is missing or contradicts the index.
        """
        stored = self.tensors[key]
        wanted: Box = (tuple(offset), tuple(out.shape))
        missing = out.numel()
        near = self._near(key, offset[0], offset[0] + out.shape[0]) if offset else stored.chunks
        for chunk in near:
            shared = overlap(wanted, (chunk.offset, chunk.shape))
            if shared is None:
                continue
            begin, shape = shared
            inner = tuple(b - o for b, o in zip(begin, chunk.offset, strict=True))
            target = tuple(
                slice(b - o, b - o + n) for b, o, n in zip(begin, offset, shape, strict=True)
            )
            self._part(stored, chunk, inner, out.detach()[target])
            missing -= math.prod(shape)
        if missing and stored.partial:  # of others, what lies behind the end is left as it is
            raise CheckpointError(f"{self.directory}: {key} was not trained at {list(offset)}, so "
                                  "that its state is not stored; train the same parameters again, "
                                  "or start anew from the weights")  # fmt: skip

    def _part(
        self, stored: Stored, chunk: Chunk, offset: tuple[int, ...], out: torch.Tensor
    ) -> None:
        """Fill `out` with the box at `offset` within a chunk."""
        self._checked(stored, chunk).read_box(chunk.name, offset, out.shape, out)

    def _checked(self, stored: Stored, chunk: Chunk) -> TensorFile:
        file = self._files.get(chunk.file)
        if file is None:
            if len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            running = None
            if self._hasher is not None:
                running = self._hashes.setdefault(chunk.file, RunningHash(self._hasher))
            file = self._files[chunk.file] = TensorFile(self.directory / chunk.file, running)
        entry = file.entries.get(chunk.name)
        if entry is None or (entry.dtype, entry.shape) != (stored.dtype, chunk.shape):
            found = f"{entry.dtype} {entry.shape}" if entry else "nothing"
            raise CheckpointError(f"{file.path}: the index promises {chunk.name} as {stored.dtype} "
                                  f"{chunk.shape}; the file has {found}")  # fmt: skip
        return file

    def close(self) -> None:
        """Close the files; the next `read` opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()
