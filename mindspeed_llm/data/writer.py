"""Owns writing token rows: shards by any process, then the six files in megatron.core's format.

The format is that of megatron.core.datasets.indexed_dataset (int32, one sequence a document),
written here so that preparing data does not import megatron. Where rows come with a line of turns,
those lines become a file beside the six. It knows no template, no tokenizer, and no turn.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from mindspeed_llm.data.manifest import KEYS, DatasetFiles
from mindspeed_llm.data.packing import Packing, best_fit_decreasing, offsets, segment_ids
from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.data.report import KEPT, WRITTEN
from mindspeed_llm.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_INT32 = 4  # megatron.core's code of the dtype
_HEADER, _COUNT_AT = 34, 18  # of an .idx: bytes before the lengths, and of the count
_BLOCK = 1 << 20
_OPEN = 256  # shards open at a time
CONTINUED = len(WRITTEN)


class Rows(Protocol):
    """Rows in files, one behind the other; `path` has the values of a key, int32."""

    def path(self, key: str) -> Path:
        """File of one key."""

    def lengths(self) -> np.ndarray:
        """Tokens of every row, int32 [rows]."""


class Shard:
    """Rows written by one process, in order: `<stem>.input_ids`, `.labels`, `.lengths` (int32),
    `.outcomes` (uint8: a place in WRITTEN, or CONTINUED for a further piece of the row before), and
    where rows have them their lines of turns: `.turns` and, in bytes, `.turn_lengths` (int32)."""

    def __init__(self, stem: Path) -> None:
        self.stem = stem
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Shard:
        for key in ("input_ids", "labels", "lengths", "outcomes", "turns", "turn_lengths"):
            self._files[key] = self.path(key).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def path(self, key: str) -> Path:
        """File of one key."""
        return self.stem.with_name(f"{self.stem.name}.{key}")

    def lengths(self) -> np.ndarray:
        """Tokens of every row, int32 [rows]."""
        return np.fromfile(self.path("lengths"), dtype="<i4")

    def add(self, ids: Sequence[int], labels: Sequence[int], outcome: str | None = KEPT,
            turns: bytes = b"") -> None:  # fmt: skip
        """Append one row; `outcome` None: it continues the row before."""
        self._files["input_ids"].write(np.asarray(ids, dtype="<i4").tobytes())
        self._files["labels"].write(np.asarray(labels, dtype="<i4").tobytes())
        self._files["lengths"].write(struct.pack("<i", len(ids)))
        code = CONTINUED if outcome is None else WRITTEN.index(outcome)
        self._files["outcomes"].write(bytes((code,)))
        if turns:
            self._files["turns"].write(turns)
            self._files["turn_lengths"].write(struct.pack("<i", len(turns)))


class PreparedShard:
    """The rows of a data set that is prepared already, as a shard has them."""

    def __init__(self, files: DatasetFiles) -> None:
        self._files = files

    def path(self, key: str) -> Path:
        """File of one key."""
        return self._files.data(key)

    def lengths(self) -> np.ndarray:
        """Tokens of every row, int32 [rows]."""
        return index_lengths(self._files.index("input_ids"))


@contextmanager
def exclusive_scratch(files: DatasetFiles) -> Iterator[Path]:
    """An empty directory for temporaries, removed at the end; a dead run's leftovers are removed.

    Raises:
        DataError: another live process is writing the same data set, or the place is not writable.
    """
    made = [p for p in files.scratch.parents if not p.exists()]
    try:
        files.scratch.mkdir(parents=True, exist_ok=True)
        lock = (files.scratch / "lock").open("w")
    except OSError as err:
        raise DataError(f"--output-prefix {files.prefix}: cannot write there ({err})") from err
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise DataError(f"--output-prefix {files.prefix}: another process is writing this "
                            "data set; wait for it, or choose another prefix") from err  # fmt: skip
        for leftover in files.scratch.iterdir():
            if leftover.name != "lock":
                leftover.unlink()
        try:
            yield files.scratch
        finally:
            shutil.rmtree(files.scratch, ignore_errors=True)
            for folder in made:
                with suppress(OSError):  # of another run, or no longer empty
                    folder.rmdir()


def remove_finished(files: DatasetFiles) -> None:
    """Remove an older data set of this prefix, the manifest first, so it never looks finished."""
    for path in (files.manifest, files.report, files.refused, files.turns, *files.six):
        path.unlink(missing_ok=True)


def write_six(files: DatasetFiles, shards: Sequence[Shard], scratch: Path) -> dict[str, Any]:
    """Join the shards in the given order into the six files, then move those to their names.

    An older data set of the prefix is removed when all of them are written, not before.

    Returns:
        Size in bytes and sha256 of each file, by name (for the manifest).

    Raises:
        DataError: no rows, or the disk is full.
    """
    lengths = row_lengths(shards)
    sources = {key: _joined(shards, key) for key in ("input_ids", "labels")}
    turns = _joined(shards, "turns") if len(_turn_lengths(shards)) else None
    return _write_files(files, lengths, sources | {"attention_mask": _ones(lengths)}, scratch,
                        turns)  # fmt: skip


def write_ordered(files: DatasetFiles, shards: Sequence[Rows], order: np.ndarray,
                  scratch: Path) -> tuple[dict[str, Any], int]:  # fmt: skip
    """Like `write_six`, but row n of the files is the shards' row `order[n]`.

    Returns:
        What `write_six` returns, and the number of labels that are not -100.

    Raises:
        DataError: no rows, or the disk is full.
    """
    lengths = row_lengths(shards)
    labels = _Ordered(shards, "labels", lengths, order)
    sources = {"input_ids": iter(_Ordered(shards, "input_ids", lengths, order)),
               "labels": iter(labels), "attention_mask": _ones(lengths[order])}  # fmt: skip
    made = [shard for shard in shards if isinstance(shard, Shard)]
    sizes = _turn_lengths(made)
    turns = iter(_Lines(made, "turns", sizes, order)) if len(sizes) == len(lengths) else None
    described = _write_files(files, lengths[order], sources, scratch, turns)
    return described, labels.supervised


def write_packed(
    files: DatasetFiles,
    shards: Sequence[Rows],
    packs: Sequence[Sequence[int]],
    packing: Packing,
    pad_id: int,
    scratch: Path,
    order: np.ndarray | None = None,
) -> tuple[dict[str, Any], int]:
    """Like `write_six`, but row n of the files holds the rows `packs[n]` of the order.

    Every row has `packing.capacity` tokens. attention_mask holds segment ids 1 .. k and 0 on
    padding; labels are -100 on padding and on the first token of a segment, which nothing precedes.
    Rows are gathered from the shards one pack at a time.

    Returns:
        What `write_six` returns, and the number of labels that are not -100.

    Raises:
        DataError: no rows, or the disk is full.
    """
    lengths = row_lengths(shards)
    order = np.arange(len(lengths)) if order is None else order
    rows = [order[pack] for pack in packs]
    labels = _Packed(shards, "labels", lengths, rows, packing, IGNORE)
    sources: dict[str, Iterator[bytes]] = {
        "input_ids": iter(_Packed(shards, "input_ids", lengths, rows, packing, pad_id)),
        "attention_mask": (segment_ids(lengths[n], packing.capacity, packing.multiple).tobytes()
                           for n in rows),
        "labels": iter(labels),
    }  # fmt: skip
    width = np.full(len(packs), packing.capacity, dtype="<i4")
    return _write_files(files, width, sources, scratch), labels.supervised


def pack_rows(files: DatasetFiles, shards: Sequence[Rows], order: np.ndarray | None, scratch: Path,
              *, capacity: int, multiple: int,
              pad_id: int) -> tuple[Packing, dict[str, Any], int]:  # fmt: skip
    """Pack the rows of the order best-fit decreasing and write them, see `write_packed`.

    Returns:
        How they are packed, and what `write_packed` returns.
    """
    lengths = row_lengths(shards)
    lengths = lengths if order is None else lengths[order]
    packs = best_fit_decreasing(lengths, capacity, multiple)
    filled = int(lengths.sum(dtype=np.int64)) / (max(1, len(packs)) * capacity)
    packing = Packing(capacity=capacity, multiple=multiple, segments=len(lengths), rows=len(packs),
                      efficiency=filled)  # fmt: skip
    return packing, *write_packed(files, shards, packs, packing, pad_id, scratch, order)


def row_lengths(shards: Sequence[Rows]) -> np.ndarray:
    """Tokens of every row of the shards, int32 [rows]."""
    return np.concatenate([s.lengths() for s in shards] or [np.zeros(0, "<i4")])


def _turn_lengths(shards: Sequence[Shard]) -> np.ndarray:
    """Bytes of every line of turns of the shards, int32; none where rows have no turns."""
    found = [np.fromfile(s.path("turn_lengths"), dtype="<i4") for s in shards]
    return np.concatenate(found or [np.zeros(0, "<i4")])


def index_lengths(path: Path) -> np.ndarray:
    """Tokens of every row of an .idx file, int32 [rows]."""
    index = path.read_bytes()
    (count,) = struct.unpack_from("<Q", index, _COUNT_AT)
    return np.frombuffer(index, "<i4", count, _HEADER)


def outcomes(shards: Sequence[Shard]) -> np.ndarray:
    """What became of every row of the shards (see `Shard`), uint8 [rows]."""
    return np.concatenate(
        [np.fromfile(s.path("outcomes"), dtype="u1") for s in shards] or [np.zeros(0, "u1")]
    )


class _Picked:
    """Any row of one key by its number; `supervised` counts values not -100 that were taken.

    Rows are read and not mapped: mapped pages would count as memory, and grow with the input.
    """

    width = 4  # bytes of a value

    def __init__(self, shards: Sequence[Rows], key: str, lengths: np.ndarray) -> None:
        self._lengths = lengths
        self._paths = [shard.path(key) for shard in shards]
        sizes = [path.stat().st_size // self.width for path in self._paths]
        self._shard_ends = np.cumsum(np.array(sizes, dtype=np.int64))
        self._starts = np.cumsum(lengths, dtype=np.int64) - lengths
        self._open: dict[int, BinaryIO] = {}
        self.supervised = 0

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            self._open.popitem()[1].close()

    def _bytes(self, row: int) -> bytes:
        start = int(self._starts[row])
        number = int(np.searchsorted(self._shard_ends, start, side="right"))
        if number not in self._open:
            if len(self._open) == _OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = self._paths[number].open("rb", buffering=0)
        start -= int(self._shard_ends[number - 1]) if number else 0
        size = self.width * int(self._lengths[row])
        return os.pread(self._open[number].fileno(), size, self.width * start)

    def _row(self, row: int) -> np.ndarray:
        return np.frombuffer(self._bytes(row), "<i4")


class _Ordered(_Picked):
    """Bytes of one key, row by row in a given order."""

    def __init__(self, shards: Sequence[Rows], key: str, lengths: np.ndarray,
                 order: np.ndarray) -> None:  # fmt: skip
        super().__init__(shards, key, lengths)
        self._order = order

    def __iter__(self) -> Iterator[bytes]:
        with closing(self):
            for row in self._order.tolist():
                values = self._row(row)
                self.supervised += int((values != IGNORE).sum())
                yield values.tobytes()


class _Lines(_Ordered):
    """Lines, one a row, in a given order; their lengths are bytes."""

    width = 1

    def __iter__(self) -> Iterator[bytes]:
        with closing(self):
            yield from map(self._bytes, self._order.tolist())


class _Packed(_Picked):
    """Bytes of one key, pack by pack."""

    def __init__(self, shards: Sequence[Rows], key: str, lengths: np.ndarray,
                 packs: Sequence[np.ndarray], packing: Packing, fill: int) -> None:  # fmt: skip
        super().__init__(shards, key, lengths)
        self._packs, self._packing = packs, packing
        self._fill, self._masks_first = fill, key == "labels"

    def __iter__(self) -> Iterator[bytes]:
        with closing(self):
            for rows in self._packs:
                packed = np.full(self._packing.capacity, self._fill, dtype="<i4")
                lengths = self._lengths[rows]
                for row, at, length in zip(rows.tolist(), offsets(lengths, self._packing.multiple),
                                           lengths, strict=True):  # fmt: skip
                    packed[at : at + length] = self._row(row)
                    if self._masks_first:
                        packed[at] = self._fill
                self.supervised += int((packed != IGNORE).sum())
                yield packed.tobytes()


def _write_files(
    files: DatasetFiles,
    lengths: np.ndarray,
    sources: Mapping[str, Iterator[bytes]],
    scratch: Path,
    turns: Iterable[bytes] | None = None,
) -> dict[str, Any]:
    if not len(lengths):
        raise DataError(f"--output-prefix {files.prefix}: no rows to write")
    described: dict[str, Any] = {}
    try:
        for key in KEYS:
            described[files.data(key).name] = _write(scratch / files.data(key).name, sources[key])
            described[files.index(key).name] = _write(scratch / files.index(key).name,
                                                      _index(lengths))  # fmt: skip
        if turns is not None:
            described[files.turns.name] = _write(scratch / files.turns.name, turns)
        remove_finished(files)
        for name in described:
            os.replace(scratch / name, files.prefix.parent / name)
    except OSError as err:
        raise DataError(f"--output-prefix {files.prefix}: writing failed: {err}") from err
    return described


def _write(path: Path, blocks: Iterable[bytes]) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _joined(shards: Sequence[Shard], key: str) -> Iterator[bytes]:
    for shard in shards:
        with shard.path(key).open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


def _ones(lengths: np.ndarray) -> Iterator[bytes]:
    left = int(lengths.sum(dtype=np.int64))
    while left:
        count = min(left, _BLOCK)
        yield np.ones(count, dtype="<i4").tobytes()
        left -= count


def _index(lengths: np.ndarray) -> Iterator[bytes]:
    count = len(lengths)
    starts = np.zeros(count, dtype="<i8")
    np.cumsum(lengths[:-1].astype("<i8") * 4, out=starts[1:])
    yield _MAGIC + struct.pack("<QBQQ", 1, _INT32, count, count + 1)
    yield lengths.astype("<i4").tobytes()
    yield starts.tobytes()
    yield np.arange(count + 1, dtype="<i8").tobytes()
