"""Tests of mindspeed_llm.data.tables: parquet and Arrow files, damaged ones too."""

from __future__ import annotations

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.tables import Cursor, group_rows, schema
from mindspeed_llm.errors import DataError

ROWS = [{"n": i, "chat": [{"role": "user", "content": f"é{i}"}] * (i % 3), "x": "unread"}
        for i in range(100)]  # fmt: skip


def write(path, format, *, stream=False, table=None, compression=None):
    table = pyarrow.Table.from_pylist(ROWS) if table is None else table
    if format == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=30)
        return path
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    kind = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with kind(path, table.schema, options=options) as file:
        file.write_table(table, max_chunksize=30)
    return path


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_arrow_files_and_streams(tmp_path, stream, compression):
    path = write(tmp_path / "a", "arrow", stream=stream, compression=compression)
    assert schema(path, "arrow").names == ["n", "chat", "x"]
    assert group_rows(path, "arrow") == [100]
    cursor = Cursor(path, "a", "arrow", 0, 0, ["chat", "n"])
    found = [*cursor.rows(0, 10), *cursor.rows(70, 100)]
    rows = [{k: row[k] for k in ("n", "chat")} for row in ROWS]
    assert found == [(i + 1, rows[i]) for i in [*range(10), *range(70, 100)]]


def test_columns_that_a_file_lacks_are_absent(tmp_path):
    path = write(tmp_path / "a", "arrow")
    assert [row for _, row in Cursor(path, "a", "arrow", 0, 0, ["n"]).rows(0, 1)] == [{"n": 0}]


def test_an_empty_table_has_no_rows(tmp_path):
    empty = pyarrow.Table.from_pylist(ROWS).slice(0, 0)
    for format in ("arrow", "parquet"):
        assert sum(group_rows(write(tmp_path / format, format, table=empty), format)) == 0


@pytest.mark.parametrize("format", ["arrow", "parquet"])
def test_a_text_that_is_not_utf8_costs_only_its_row(tmp_path, format):
    texts = [b"good", b"\xff\xfe", "é".encode()]
    column = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    path = write(tmp_path / "a", format, table=pyarrow.table({"t": column}))
    found = [row for _, row in Cursor(path, "a", format, 0, 0, ["t"]).rows(0, 3)]
    assert found[0] == {"t": "good"} and found[2] == {"t": "é"}
    assert isinstance(found[1], RowError) and found[1].kind == "not UTF-8"


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, stream):
    path = write(tmp_path / "a", "arrow", stream=stream)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises((DataError, OSError, pyarrow.ArrowException)):
        list(Cursor(path, "a", "arrow", 0, 0, ["n"]).rows(0, 100))
