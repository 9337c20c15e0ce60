"""Tests of mindspeed_llm.data.readers: the same rows from every format and every way of cutting."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from mindspeed_llm.data import readers, tables, texts
from mindspeed_llm.data.inputs import find_inputs, unpack
from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.readers import ChunkReader, line_numbers, split_chunks
from mindspeed_llm.errors import DataError

ROWS = [{"n": i, "t": f'row {i} "[{{]}}\\ ' + "é\U0001f600\n" * (i % 7)} for i in range(200)]
COLUMNS = ("n", "t")
PLAIN = [{"text": f'row {i} "[{{]}}\\ é\U0001f600' * (1 + i % 5)} for i in range(200)]
NAMES = ["a.parquet", "a.json", "a.jsonl", "a.csv", "a.arrow", "stream.arrow", "a.txt"]


def write(path, rows=ROWS, **options):
    if path.suffix == ".gz":
        plain = write(path.with_suffix(""), rows, **options)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    elif path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, path, row_group_size=70)
    elif path.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        kind = pyarrow.ipc.new_stream if path.stem == "stream" else pyarrow.ipc.new_file
        with kind(path, table.schema) as file:
            file.write_table(table, max_chunksize=60)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['text']}\n" for row in PLAIN), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, **options), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def expected(path):
    if ".txt" in path.name:
        return PLAIN
    return [{k: str(v) for k, v in r.items()} for r in ROWS] if ".csv" in path.name else ROWS


def read(path):
    (file,) = find_inputs([str(path)])
    file = unpack(file, path.parent, 0)
    reader = ChunkReader((*COLUMNS, "text"))
    return [item for chunk in split_chunks(file) for item in reader.read(chunk)]


@pytest.mark.parametrize("size", [1, 37, 1000, 1 << 20])
@pytest.mark.parametrize("name", [*NAMES, "a.json.gz", "a.csv.gz", "a.parquet.gz"])
def test_rows_do_not_depend_on_where_chunks_are_cut(tmp_path, monkeypatch, name, size):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", size)
    monkeypatch.setattr(readers, "_CHUNK_ROWS", min(size, 50))
    monkeypatch.setattr(tables, "_BATCH_ROWS", 16)
    path = write(tmp_path / name)
    found = read(path)
    assert [row for _, row in found] == expected(path)
    positions = [position for position, _ in found]
    assert positions == sorted(set(positions))
    file = unpack(find_inputs([str(path)])[0], tmp_path, 1)
    chunks = split_chunks(file)
    assert sum(c.weight for c in chunks) >= file.data.stat().st_size / 2
    assert len(chunks) > 3 or size > 1000


def test_an_indented_array_with_lists_inside(tmp_path):
    rows = [{"h": [["a", "]b"], []], "n": None}, {"h": {}}]
    assert [row for _, row in read(write(tmp_path / "a.json", rows, indent=2))] == rows


def test_text_behind_an_array_is_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"n": 1}] {"n": 2}')
    with pytest.raises(DataError, match="text behind the JSON array"):
        read(path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_lines_in_a_json_file_byte_order_mark_line_ends_and_blank_lines(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\n   \n{"n": 2}')
    found = read(path)
    assert [row for _, row in found] == [{"n": 1}, {"n": 2}]
    (file,) = find_inputs([str(path)])
    assert list(line_numbers(file, [p for p, _ in found]).values()) == [1, 4]


BAD = [b'{"n": 1}', b"{oops}", b"[1, 2]", b'{"n": "\xff"}', b"17", b"[" * 100_000, b'{"n": 2}']


def test_rows_that_cannot_be_decoded_are_given_as_errors_with_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(BAD))
    found = read(path)
    kinds = [row.kind if isinstance(row, RowError) else row["n"] for _, row in found]
    assert kinds == [1, "not JSON", "not an object", "not UTF-8", "not an object", "not JSON", 2]
    (file,) = find_inputs([str(path)])
    assert list(line_numbers(file, [p for p, _ in found]).values()) == list(range(1, 8))


def test_bad_elements_of_an_array_do_not_hide_their_neighbours(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[\n{"n": 1},\n17,\n{oops},\n"text", null,\n{"n": 2}\n]')
    kinds = [row.kind if isinstance(row, RowError) else row["n"] for _, row in read(path)]
    assert kinds[0] == 1 and kinds[-1] == 2
    assert {"not an object", "not JSON"} >= set(kinds[1:-1]) and len(kinds) >= 5


def test_an_array_that_is_cut_off_is_an_error(tmp_path):
    path = write(tmp_path / "a.json")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not closed"):
        read(path)


def test_a_damaged_parquet_is_an_error(tmp_path):
    path = write(tmp_path / "a.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read(path)
    path.write_bytes(whole[:30] + b"\xff" * 400 + whole[430:])
    with pytest.raises(DataError, match="damaged near row"):
        read(path)


def test_only_the_columns_asked_for_are_read_from_parquet(tmp_path):
    path = write(tmp_path / "a.parquet")
    (file,) = find_inputs([str(path)])
    assert file.columns == ("n", "t")
    assert next(ChunkReader(("n", "absent")).read(split_chunks(file)[0])) == (1, {"n": 0})


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_chunks_can_be_read_in_any_order_and_in_part(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "_CHUNK_ROWS", 20)
    monkeypatch.setattr(tables, "_BATCH_ROWS", 16)
    (file,) = find_inputs([str(write(tmp_path / name))])
    chunks = split_chunks(file)
    reader = ChunkReader(COLUMNS)
    for number in (2, 0, 3, 3, 9, 1):
        chunk = chunks[number]
        first = chunk.group_start + chunk.start
        assert next(reader.read(chunk)) == (first + 1, ROWS[first])
        rows = ROWS[first : chunk.group_start + chunk.stop]
        assert [row for _, row in reader.read(chunk)] == rows
