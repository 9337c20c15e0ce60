"""Owns reading rows out of parquet and Arrow files, batch by batch, from any row on.

It knows paths, columns and row numbers; no handler and no template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.errors import DataError

_BATCH_ROWS = 256
_FILE_MAGIC = b"ARROW1"  # of an Arrow file; without it the same batches follow as a stream


def schema(path: Path, format: str) -> pyarrow.Schema:
    """Schema of a parquet or Arrow file."""
    if format == "parquet":
        with _parquet(path) as file:
            return file.schema_arrow
    with pyarrow.memory_map(str(path)) as source:
        return _arrow(source, None).schema


def group_rows(path: Path, format: str) -> list[int]:
    """Rows of each row group of a parquet file; an Arrow file is one group."""
    if format == "parquet":
        with _parquet(path) as file:
            return [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    return [sum(len(batch) for batch in _arrow_batches(path, ()))]


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False)


def _arrow(source: pyarrow.MemoryMappedFile, fields: Sequence[int] | None) -> Any:
    options = pyarrow.ipc.IpcReadOptions(included_fields=list(fields) if fields else None)
    is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    source.seek(0)
    opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    return opened(source, options=options)


def _arrow_batches(path: Path, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
    """Batches with only `columns`; they point into the mapped file, so passing over is free."""
    with pyarrow.memory_map(str(path)) as source:
        names = _arrow(source, None).schema.names
    fields = [i for i, name in enumerate(names) if name in columns] or [0][: len(names)]
    with pyarrow.memory_map(str(path)) as source:
        reader = _arrow(source, fields)
        wanted = [name for name in reader.schema.names if name in columns]
        if isinstance(reader, pyarrow.ipc.RecordBatchFileReader):
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        for batch in batches:
            yield batch.select(wanted) if wanted else batch


class Cursor:
    """A place in one group of rows, moving forward batch by batch.

    Args:
        path: file to read; `name` is what messages call it.
        format: "parquet" or "arrow".
        group: row group; `group_start` rows precede it in the file.
        columns: columns to decode, those that the file has.
    """

    def __init__(self, path: Path, name: str, format: str, group: int, group_start: int,
                 columns: Sequence[str]) -> None:  # fmt: skip
        self._name, self._group_start = name, group_start
        if format == "parquet":
            self._batches = _parquet(path).iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False
            )
        else:
            self._batches = _arrow_batches(path, columns)
        self._batch: pyarrow.RecordBatch | None = None
        self.start = 0  # row of the group that `_batch` begins with

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """(1-based row of the file, row or its RowError) of rows [start, stop) of the group."""
        at = start
        while at < stop:
            try:
                while self._batch is None or at >= self.start + len(self._batch):
                    self.start += 0 if self._batch is None else len(self._batch)
                    self._batch = self._next()
                end = min(stop, self.start + len(self._batch), at + _BATCH_ROWS)
                piece = self._batch.slice(at - self.start, end - at)
                rows = _decoded(piece)
            except (OSError, ValueError, pyarrow.ArrowException) as err:
                raise DataError(f"--input {self._name}: damaged near row "
                                f"{self._group_start + at + 1}: {err}") from err  # fmt: skip
            for index, row in enumerate(rows):
                yield self._group_start + at + index + 1, row
            at = end

    def _next(self) -> pyarrow.RecordBatch:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError("fewer rows than the file's own metadata says")
        return batch


def _decoded(piece: pyarrow.RecordBatch) -> list[Any]:
    """Rows of a batch; one whose text is not UTF-8 does not take its neighbours with it."""
    try:
        return piece.to_pylist()
    except UnicodeDecodeError:
        if len(piece) == 1:
            return [RowError("(row)", "a text that is not UTF-8", kind="not UTF-8")]
        return [row for i in range(len(piece)) for row in _decoded(piece.slice(i, 1))]
