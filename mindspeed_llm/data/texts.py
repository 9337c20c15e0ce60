"""Owns reading rows out of json, jsonl, csv and txt files between two byte offsets.

Nothing is held but the rows of such a range: lines are cut at byte offsets, an array is scanned
through a memory map, a csv file is walked once to learn where rows begin. It knows no handler.
"""

from __future__ import annotations

import codecs
import csv
import json
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.errors import DataError

TEXT = "text"  # column of a line of a txt file
_CHUNK_BYTES = 1 << 19
_LONGEST_FIELD = 1 << 26  # characters: an opened quote that nothing closes ends here at the latest
_BOM = b"\xef\xbb\xbf"
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
Rows = Iterator[tuple[int, Any]]


def ranges(path: Path, name: str, format: str) -> list[tuple[int, int]]:
    """Byte ranges [start, stop) of about equal size that together hold every row.

    Raises:
        DataError: a json array that does not close.
    """
    if format == "json":
        return list(_array_ranges(path, name))
    if format == "csv":
        return list(_csv_ranges(path))
    size = path.stat().st_size
    return [(at, min(at + _CHUNK_BYTES, size)) for at in range(0, size, _CHUNK_BYTES)]


def read(path: Path, format: str, columns: Sequence[str] | None, start: int, stop: int) -> Rows:
    """(byte offset, row) of each row that begins in [start, stop); a bad one as its RowError."""
    if format == "json":
        return _array_rows(path, start, stop)
    if format == "csv":
        return _csv_rows(path, columns or (), start, stop)
    return _lines(path, start, stop, _decode if format == "jsonl" else _plain)


def line_numbers(path: Path, positions: Sequence[int]) -> dict[int, int]:
    """1-based line of each byte offset."""
    lines: dict[int, int] = {}
    line, at = 1, 0
    with path.open("rb") as raw:
        for position in sorted(set(positions)):
            while at < position:
                block = raw.read(min(_CHUNK_BYTES, position - at))
                line += block.count(b"\n")
                at += len(block)
            lines[position] = line
    return lines


def is_utf16(path: Path) -> bool:
    """Whether a text begins with the byte order mark of UTF-16, as spreadsheets save it."""
    with path.open("rb") as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def is_array(path: Path) -> bool:
    """Whether a json file holds one array, instead of a row a line."""
    with path.open("rb") as file:
        return file.read(4096).removeprefix(_BOM).lstrip()[:1] == b"["


def _lines(path: Path, start: int, stop: int, decode: Callable[[bytes], Any]) -> Rows:
    with path.open("rb") as file:
        if start:
            # A line belongs to the range it starts in; the byte before shows whether one does.
            file.seek(start - 1)
            file.readline()
        while (position := file.tell()) < stop:
            line = file.readline()
            if position == 0:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield position, decode(line)


def _plain(line: bytes) -> Any:
    try:
        return {TEXT: line.decode().removesuffix("\n").removesuffix("\r")}
    except UnicodeDecodeError as err:
        return _not_utf8(err)


def _decode(data: bytes) -> Any:
    try:
        row = json.loads(data.decode())
    except UnicodeDecodeError as err:
        return _not_utf8(err)
    except ValueError as err:
        return RowError("(row)", f"not JSON: {err}", kind="not JSON")
    except RecursionError:
        return RowError("(row)", "nested too deeply", kind="not JSON")
    if not isinstance(row, dict):
        return RowError("(row)", "not an object with columns", kind="not an object")
    return row


def _not_utf8(err: UnicodeDecodeError) -> RowError:
    return RowError("(row)", f"not UTF-8 at byte {err.start} of the row", kind="not UTF-8")


def _array_ranges(path: Path, name: str) -> Iterator[tuple[int, int]]:
    with path.open("rb") as raw:
        # Not closed by hand: matches of the scan may still refer to it when an error is raised.
        data = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        start = data.find(b"[") + 1
        end = start
        for _, end in _elements(data, start, name):
            if end - start >= _CHUNK_BYTES:
                yield start, end
                _forget(data, start, end)
                start = end
        end = data.rfind(b"]")
        behind = data[end + 1 :].strip()
        if behind:
            raise DataError(f"--input {name}: text behind the JSON array: {behind[:40]!r}")
        if data[start:end].strip():
            yield start, end


def _forget(data: mmap.mmap, start: int, stop: int) -> None:
    """Let go of the pages of [start, stop), which would count as memory of this process."""
    first, last = (at - at % mmap.PAGESIZE for at in (start, stop))
    if hasattr(mmap, "MADV_DONTNEED") and last > first:
        data.madvise(mmap.MADV_DONTNEED, first, last - first)


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


def _array_rows(path: Path, start: int, stop: int) -> Rows:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    at = 0
    for first, last in _elements(data, 0):
        if data[at:first].strip(b" \t\r\n,"):
            yield start + at, _decode(data[at:first].strip(b" \t\r\n,"))
        yield start + first, _decode(data[first:last])
        at = last
    if data[at:].strip(b" \t\r\n,"):
        yield start + at, _decode(data[at:].strip(b" \t\r\n,"))


class _CsvLines:
    """Lines as csv.reader takes them; `at` is where the next one begins."""

    def __init__(self, file: BinaryIO, at: int) -> None:
        self._file, self.at = file, at
        self.broken: UnicodeDecodeError | None = None  # of the lines since it was last reset

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        raw = self._file.readline()
        if not raw:
            raise StopIteration
        self.at += len(raw)
        try:
            return raw.decode()
        except UnicodeDecodeError as err:
            self.broken = self.broken or err
            return raw.decode(errors="replace")


def _csv_records(path: Path, start: int) -> Iterator[tuple[int, int, Any]]:
    """(start, end, fields or RowError) of every record from a record's beginning on."""
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open("rb") as file:
        file.seek(start)
        lines = _CsvLines(file, start)
        records = csv.reader(lines, strict=True)
        while True:
            at, lines.broken = lines.at, None
            try:
                fields: Any = next(records, None)
            except csv.Error as err:
                fields = RowError("(row)", f"not CSV: {err}", kind="not CSV")
            if fields is None:
                return
            if lines.broken is not None:
                fields = _not_utf8(lines.broken)
            if fields:  # a blank line has none
                yield at, lines.at, fields


def csv_header(path: Path) -> tuple[tuple[str, ...], int]:
    """Column names of a csv file, and the offset behind them.

    Raises:
        ValueError: there is none.
    """
    with path.open("rb") as file:
        start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    for _, end, fields in _csv_records(path, start):
        if isinstance(fields, RowError):
            raise ValueError(fields.reason)
        return tuple(fields), end
    raise ValueError("no line with column names")


def _csv_ranges(path: Path) -> Iterator[tuple[int, int]]:
    _, start = csv_header(path)
    end = start
    for _, end, _ in _csv_records(path, start):
        if end - start >= _CHUNK_BYTES:
            yield start, end
            start = end
    if end > start:
        yield start, end


def _csv_rows(path: Path, columns: Sequence[str], start: int, stop: int) -> Rows:
    for at, _, fields in _csv_records(path, start):
        if at >= stop:
            return
        if isinstance(fields, RowError):
            yield at, fields
        elif len(fields) != len(columns):
            reason = f"{len(fields)} fields where the first line names {len(columns)} columns"
            yield at, RowError("(row)", reason, kind="not CSV")
        else:
            yield at, dict(zip(columns, fields, strict=True))
