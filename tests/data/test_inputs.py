"""Tests of mindspeed_llm.data.inputs: paths, weights, formats and .gz."""

from __future__ import annotations

import gzip
import json
import logging
import re

import pyarrow
import pyarrow.parquet
import pytest

from mindspeed_llm.data.inputs import find_inputs, split_weights, unpack
from mindspeed_llm.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("given", "paths", "weights"),
    [
        (["a.jsonl"], ("a.jsonl",), None),
        (["a.jsonl:0.3", "b.parquet:0.7"], ("a.jsonl", "b.parquet"), (0.3, 0.7)),
        (["C:\\data\\a.jsonl"], ("C:\\data\\a.jsonl",), None),
        (["C:\\data\\a.jsonl:2"], ("C:\\data\\a.jsonl",), (2.0,)),
        (["dir:name/a.jsonl"], ("dir:name/a.jsonl",), None),
        (["a:1e-3"], ("a",), (0.001,)),
    ],
)
def test_weights_are_told_from_paths(given, paths, weights):
    assert split_weights(given) == (paths, weights)


def test_what_exists_is_a_path(tmp_path):
    odd = tmp_path / "part:2"
    odd.write_text("x")
    assert split_weights([str(odd)]) == ((str(odd),), None)
    assert split_weights([f"{odd}:3"]) == ((str(odd),), (3.0,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a:0.3", "b"], "no weight for b"),
        (["a:0"], "weight '0'; expected a positive number"),
        (["a:-1"], "weight '-1'"),
        (["a:nan"], "weight 'nan'"),
        (["a:inf"], "weight 'inf'"),
        (["a:1.2.3"], "weight '1.2.3'"),
    ],
)
def test_wrong_weights_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        split_weights(given)


def test_directories_are_read_recursively_in_name_order(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mindspeed_llm"), "propagate", True)
    for name in ("b/2.jsonl", "b/deep/3.CSV", "c.json", "t.txt", ".hidden/x.jsonl", ".y.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("n\n1\n")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "README.md").write_text("no data")
    for name in ("set_packed_report.json", "set_packed_turns.jsonl"):  # what was made of them
        (tmp_path / name).write_text("{}")
    found = find_inputs([str(tmp_path)])
    names = [str(f.path.relative_to(tmp_path)) for f in found]
    assert names == ["a.parquet", "b/2.jsonl", "b/deep/3.CSV", "c.json", "t.txt", "z.jsonl.gz"]
    assert [f.format for f in found] == ["parquet", "jsonl", "csv", "jsonl", "txt", "jsonl"]
    assert [f.is_packed for f in found] == [False] * 5 + [True]
    for unread in ("README.md", "set_packed_report.json", "set_packed_turns.jsonl"):
        assert unread in caplog.text
    assert "a.parquet" not in caplog.text
    two = find_inputs([str(tmp_path / "c.json"), str(tmp_path / "a.parquet")])
    assert [(f.path.name, f.source) for f in two] == [("c.json", 0), ("a.parquet", 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.json", None, "no such file"),
        ("a.xlsx", "x", "unknown format '.xlsx'"),
        ("a.xlsx.gz", "x", "unknown format '.xlsx'"),
        ("a.gz", "x", "unknown format ''"),
        ("a.json", "", "is empty"),
        ("a.csv", "", "is empty"),
        ("a.csv", "\n\n", "cannot be read as csv: no line with column names"),
        ("a.jsonl", "{}\n".encode("utf-16"), "cannot be read as jsonl: it is UTF-16; save it as"),
        ("a.csv", "a\n1\n".encode("utf-16"), "cannot be read as csv: it is UTF-16; save it as"),
        ("a.csv", 'a,"b', "cannot be read as csv: not CSV"),
        ("a.csv", "a,b,a\n1,2,3\n", "two columns called 'a'"),
        ("a.parquet", "not parquet", "cannot be read as parquet"),
        ("a.arrow", "not arrow", "cannot be read as arrow"),
    ],
)
def test_wrong_inputs_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{message}"):
        find_inputs([str(path)])


def test_a_directory_without_data_is_named(tmp_path):
    with pytest.raises(DataError, match="no .parquet, .arrow, .csv, .json, .jsonl, .txt file"):
        find_inputs([str(tmp_path)])


def test_columns_are_known_where_the_file_says_them(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"a b",c\r\n1,2\r\n')
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text("{}")
    found = {f.format: f.columns for f in find_inputs([str(tmp_path)])}
    assert found == {"csv": ("a b", "c"), "txt": ("text",), "jsonl": None}


def test_a_gz_is_unpacked_and_looked_at(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps([{"n": 1}]).encode()) + gzip.compress(b" "))
    (file,) = find_inputs([str(path)])
    assert file.is_packed
    plain = unpack(file, tmp_path, 7)
    assert (plain.path, plain.format, plain.is_packed) == (path, "json", False)
    assert plain.data.read_bytes() == b'[{"n": 1}] '
    assert unpack(plain, tmp_path, 8) is plain


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-9], "cannot be decompressed"),
        (lambda b: b[:20] + b"\xff" * 9 + b[29:], "cannot be decompressed"),
        (lambda b: b"no gzip at all", "cannot be decompressed"),
        (lambda b: gzip.compress(b""), "is empty"),
    ],
)
def test_a_damaged_gz_is_an_error(tmp_path, damage, message):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"n": 1}\n' * 500)))
    (file,) = find_inputs([str(path)])
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{message}"):
        unpack(file, tmp_path, 0)
