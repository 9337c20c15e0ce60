"""Owns reading rows out of parquet, json and jsonl files in chunks that processes share.

Nothing is held but a chunk: jsonl is cut at byte offsets, a json array is scanned through a memory
map, parquet is decoded by record batches. It knows no handler and no template.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.errors import DataError
from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)
Format = Literal["parquet", "json", "jsonl"]
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".json": "json", ".jsonl": "jsonl"}
_CHUNK_BYTES = 1 << 19
_CHUNK_ROWS = 512
_BATCH_ROWS = 256
_BOM = b"\xef\xbb\xbf"
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)


@dataclass(frozen=True)
class InputFile:
    """One input file. `columns` are those of its schema (parquet), else None."""

    path: Path
    format: Format
    columns: frozenset[str] | None


@dataclass(frozen=True)
class Chunk:
    """Rows one process reads: bytes [start, stop) of a text file, or rows of a parquet row group.

    `weight` is its share of the input in bytes, for progress.
    """

    file: InputFile
    start: int
    stop: int
    weight: int
    group: int = 0
    group_start: int = 0


def find_inputs(inputs: Sequence[str]) -> list[InputFile]:
    """Files of `--input`, directories expanded recursively in name order.

    Raises:
        DataError: a path that is missing, empty, unreadable, or of no known format; names it.
    """
    found: list[InputFile] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            everything = sorted(p for p in path.rglob("*") if p.is_file())
            inside = [p for p in everything if p.suffix in SUFFIXES]
            others = [str(p) for p in everything if p.suffix not in SUFFIXES]
            if others:
                _log.warning("--input %s: not read, since only %s are: %s", text,
                             ", ".join(SUFFIXES), ", ".join(others))  # fmt: skip
            if not inside:
                raise DataError(f"--input {text}: no {', '.join(SUFFIXES)} file in this directory")
            found += [_open_input(p) for p in inside]
        elif path.is_file():
            found.append(_open_input(path))
        else:
            raise DataError(f"--input {text}: no such file or directory")
    return found


def _open_input(path: Path) -> InputFile:
    if path.suffix not in SUFFIXES:
        raise DataError(f"--input {path}: unknown format {path.suffix!r}; expected one of "
                        f"{', '.join(SUFFIXES)}")  # fmt: skip
    format = SUFFIXES[path.suffix]
    try:
        if path.stat().st_size == 0:
            raise DataError(f"--input {path}: the file is empty")
        if format == "parquet":
            with _parquet(path) as file:
                return InputFile(path, format, frozenset(file.schema_arrow.names))
        if format == "json" and not _is_array(path):
            format = "jsonl"
    except (OSError, pyarrow.ArrowException) as err:
        raise DataError(f"--input {path}: cannot be read as {format}: {err}") from err
    return InputFile(path, format, None)


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(_BOM).lstrip()[:1] == b"["


def split_chunks(file: InputFile) -> list[Chunk]:
    """Chunks of a file, in order.

    Raises:
        DataError: a json array that does not close, or a parquet file without rows.
    """
    if file.format == "parquet":
        return _parquet_chunks(file)
    if file.format == "json":
        return _array_chunks(file)
    size = file.path.stat().st_size
    return [Chunk(file, start, min(start + _CHUNK_BYTES, size), min(_CHUNK_BYTES, size - start))
            for start in range(0, size, _CHUNK_BYTES)]  # fmt: skip


def _parquet_chunks(file: InputFile) -> list[Chunk]:
    with _parquet(file.path) as parquet:
        meta = parquet.metadata
        counts = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
    bytes_per_row = file.path.stat().st_size / max(1, sum(counts))
    chunks: list[Chunk] = []
    first = 0
    for group, rows in enumerate(counts):
        for start in range(0, rows, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, rows)
            weight = max(1, round((stop - start) * bytes_per_row))
            chunks.append(Chunk(file, start, stop, weight, group, first))
        first += rows
    return chunks


def _array_chunks(file: InputFile) -> list[Chunk]:
    chunks: list[Chunk] = []
    with file.path.open("rb") as raw:
        # Not closed by hand: matches of the scan may still refer to it when an error is raised.
        data = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        start = data.find(b"[") + 1
        end = start
        for _, end in _elements(data, start, str(file.path)):
            if end - start >= _CHUNK_BYTES:
                chunks.append(Chunk(file, start, end, end - start))
                start = end
        end = data.rfind(b"]")
        if data[start:end].strip():
            chunks.append(Chunk(file, start, end, end - start))
    return chunks


def _elements(data: bytes | mmap.mmap, start: int, name: str = "") -> Iterator[tuple[int, int]]:
    """Byte ranges of the objects or lists directly inside an array whose inside begins at `start`.

    With a name the array's own closing bracket is required; without, `data` is a piece of one.
    """
    depth, opened = 0, start
    for match in _STRUCTURE.finditer(data, start):
        token = match[0]
        if token in (b"{", b"["):
            opened = match.start() if depth == 0 else opened
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                yield opened, match.end()
            elif depth < 0:
                return
    if name:
        raise DataError(f"--input {name}: the JSON array is not closed (the file is cut off?)")


class ChunkReader:
    """Reads chunks; those of one parquet row group in ascending order are decoded only once.

    Args:
        columns: all that is read where the format allows to choose.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._cursor: _Cursor | None = None

    def read(self, chunk: Chunk) -> Iterator[tuple[int, Any]]:
        """(position, row) of each row; a row that cannot be decoded is given as its RowError.

        A position is the 1-based row of a parquet file and the byte offset in a text file
        (see `line_numbers`).
        """
        if chunk.file.format == "json":
            yield from _read_array(chunk)
        elif chunk.file.format == "jsonl":
            yield from _read_lines(chunk)
        else:
            cursor = self._cursor
            if cursor is None or not cursor.reaches(chunk):
                cursor = self._cursor = _Cursor(chunk, self.columns)
            yield from cursor.rows(chunk)


class _Cursor:
    """A place in a parquet row group, moving forward batch by batch."""

    def __init__(self, chunk: Chunk, columns: Sequence[str]) -> None:
        self._file, self._group = chunk.file, chunk.group
        present = [c for c in columns if c in (chunk.file.columns or ())]
        self._parquet = _parquet(chunk.file.path)
        self._batches = self._parquet.iter_batches(
            _BATCH_ROWS, row_groups=[chunk.group], columns=present, use_threads=False
        )
        self._batch: pyarrow.RecordBatch | None = None
        self._start = 0  # row of the group that `_batch` begins with

    def reaches(self, chunk: Chunk) -> bool:
        """Whether the chunk lies in this row group and not behind."""
        return (self._file, self._group) == (chunk.file, chunk.group) and chunk.start >= self._start

    def _next(self) -> pyarrow.RecordBatch:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError("fewer rows than the file's own metadata says")
        return batch

    def rows(self, chunk: Chunk) -> Iterator[tuple[int, Any]]:
        """See `ChunkReader.read`."""
        at = chunk.start
        while at < chunk.stop:
            try:
                while self._batch is None or at >= self._start + len(self._batch):
                    self._start += 0 if self._batch is None else len(self._batch)
                    self._batch = self._next()
                stop = min(chunk.stop, self._start + len(self._batch))
                rows = self._batch.slice(at - self._start, stop - at).to_pylist()
            except (OSError, ValueError, pyarrow.ArrowException) as err:
                raise DataError(f"--input {self._file.path}: damaged near row "
                                f"{chunk.group_start + at + 1}: {err}") from err  # fmt: skip
            for index, row in enumerate(rows):
                yield chunk.group_start + at + index + 1, row
            at = stop


def _read_lines(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    with chunk.file.path.open("rb") as file:
        if chunk.start:
            # A line belongs to the chunk it starts in; the byte before shows whether one does.
            file.seek(chunk.start - 1)
            file.readline()
        while (position := file.tell()) < chunk.stop:
            line = file.readline()
            if position == 0:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield position, _decode(line)


def _read_array(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    with chunk.file.path.open("rb") as file:
        file.seek(chunk.start)
        data = file.read(chunk.stop - chunk.start)
    at = 0
    for start, stop in _elements(data, 0):
        if data[at:start].strip(b" \t\r\n,"):
            yield chunk.start + at, _decode(data[at:start].strip(b" \t\r\n,"))
        yield chunk.start + start, _decode(data[start:stop])
        at = stop
    if data[at:].strip(b" \t\r\n,"):
        yield chunk.start + at, _decode(data[at:].strip(b" \t\r\n,"))


def _decode(data: bytes) -> Any:
    try:
        row = json.loads(data.decode())
    except UnicodeDecodeError as err:
        return RowError("(row)", f"not UTF-8 at byte {err.start} of the row", kind="not UTF-8")
    except ValueError as err:
        return RowError("(row)", f"not JSON: {err}", kind="not JSON")
    except RecursionError:
        return RowError("(row)", "nested too deeply", kind="not JSON")
    if not isinstance(row, dict):
        return RowError("(row)", "not an object with columns", kind="not an object")
    return row


def line_numbers(file: InputFile, positions: Sequence[int]) -> dict[int, int]:
    """1-based line (text files) or row (parquet) of each position that `read_chunk` gave."""
    if file.format == "parquet":
        return {position: position for position in positions}
    lines: dict[int, int] = {}
    line, at = 1, 0
    with file.path.open("rb") as raw:
        for position in sorted(set(positions)):
            while at < position:
                block = raw.read(min(_CHUNK_BYTES, position - at))
                line += block.count(b"\n")
                at += len(block)
            lines[position] = line
    return lines
