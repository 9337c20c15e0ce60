"""Owns cutting input files into chunks that processes share, and reading one chunk's rows.

What a format looks like inside is known to `tables` and `texts`; here is neither handler nor
template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow

from mindspeed_llm.data import tables, texts
from mindspeed_llm.data.inputs import InputFile
from mindspeed_llm.errors import DataError

_CHUNK_ROWS = 512
_TABLES = ("parquet", "arrow")


@dataclass(frozen=True)
class Chunk:
    """Rows one process reads: bytes [start, stop) of a text file, or rows of a group of a table.

    `weight` is its share of the input in bytes, for progress.
    """

    file: InputFile
    start: int
    stop: int
    weight: int
    group: int = 0
    group_start: int = 0


def split_chunks(file: InputFile) -> list[Chunk]:
    """Chunks of a file, in order.

    Raises:
        DataError: a json array that does not close, or a damaged file.
    """
    if file.format not in _TABLES:
        found = texts.ranges(file.data, str(file.path), file.format)
        return [Chunk(file, start, stop, stop - start) for start, stop in found]
    try:
        counts = tables.group_rows(file.data, file.format)
    except (OSError, pyarrow.ArrowException) as err:
        raise DataError(f"--input {file.path}: damaged: {err}") from err
    bytes_per_row = file.data.stat().st_size / max(1, sum(counts))
    chunks: list[Chunk] = []
    first = 0
    for group, rows in enumerate(counts):
        for start in range(0, rows, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, rows)
            weight = max(1, round((stop - start) * bytes_per_row))
            chunks.append(Chunk(file, start, stop, weight, group, first))
        first += rows
    return chunks


class ChunkReader:
    """Reads chunks; those of one group of a table in ascending order are decoded only once.

    Args:
        columns: all that is read where the format allows to choose.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._cursor: tables.Cursor | None = None
        self._place: tuple[InputFile, int] | None = None

    def read(self, chunk: Chunk) -> Iterator[tuple[int, Any]]:
        """(position, row) of each row; a row that cannot be decoded is given as its RowError.

        A position is the 1-based row of a table and the byte offset in a text file (see
        `line_numbers`).
        """
        file = chunk.file
        if file.format not in _TABLES:
            return texts.read(file.data, file.format, file.columns, chunk.start, chunk.stop)
        place = (file, chunk.group)
        if self._cursor is None or self._place != place or chunk.start < self._cursor.start:
            present = [c for c in self.columns if c in (file.columns or ())]
            self._cursor = tables.Cursor(file.data, str(file.path), file.format, chunk.group,
                                         chunk.group_start, present)  # fmt: skip
            self._place = place
        return self._cursor.rows(chunk.start, chunk.stop)


def line_numbers(file: InputFile, positions: Sequence[int]) -> dict[int, int]:
    """1-based line (text files) or row (tables) of each position that `ChunkReader.read` gave."""
    if file.format in _TABLES:
        return {position: position for position in positions}
    return texts.line_numbers(file.data, positions)
