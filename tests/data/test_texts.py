"""Tests of mindspeed_llm.data.texts: csv records and plain lines; arrays are in test_readers."""

from __future__ import annotations

import csv
import io
import random

import pytest

from mindspeed_llm.data import texts
from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.texts import csv_header, line_numbers, ranges, read


def rows(path, format="csv"):
    columns = csv_header(path)[0] if format == "csv" else None
    return [item for start, stop in ranges(path, "a", format)
            for item in read(path, format, columns, start, stop)]  # fmt: skip


@pytest.mark.parametrize("size", [1, 40, 1 << 20])
def test_any_csv_reads_like_the_csv_module(tmp_path, monkeypatch, size):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", size)
    rng = random.Random(size)
    cells = [
        "",
        "a",
        "é\U0001f600",
        'say "hi"',
        "two\nlines",
        "cr\r\nlf",
        ",",
        "[[1]]",
        "\x00",
        "'",
    ]
    table = [[rng.choice(cells) for _ in range(3)] for _ in range(60)]
    table = [row for row in table if any(row)]
    text = io.StringIO()
    csv.writer(text).writerows([["x", "y", "z"], *table])
    path = tmp_path / "a.csv"
    path.write_bytes(text.getvalue().encode())
    assert [list(row.values()) for _, row in rows(path)] == table


BROKEN = (b'x,y\n1,2\n\n"open, 3\n4,5",6\n7\n8,9,10\n"a" b,11\n\xff,12\n"q ""quoted""",13\n'
          b'"never closed,14\n15,16\n')  # fmt: skip


def test_broken_records_do_not_hide_their_neighbours(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(BROKEN)
    found = rows(path)
    lines = line_numbers(path, [at for at, _ in found])
    kinds = [(lines[at], row.kind if isinstance(row, RowError) else row["y"]) for at, row in found]
    assert kinds == [(2, "2"), (4, "6"), (6, "not CSV"), (7, "not CSV"), (8, "not CSV"),
                     (9, "not UTF-8"), (10, "13"), (11, "not CSV")]  # fmt: skip
    assert found[1][1]["x"] == "open, 3\n4,5"


def test_a_field_ends_somewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "_LONGEST_FIELD", 100)
    path = tmp_path / "a.csv"
    path.write_text('x\n"' + "a\n" * 300 + "b\n")
    found = rows(path)
    assert isinstance(found[0][1], RowError) and "limit" in found[0][1].reason
    assert found[-1][1] == {"x": "b"}


def test_lines_of_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone \r\n\n  \n two\n\xff\nlast\x0b\xc2\x85 end")
    found = rows(path, "txt")
    kinds = [row.kind if isinstance(row, RowError) else row["text"] for _, row in found]
    assert kinds == ["one ", " two", "not UTF-8", "last\x0b\x85 end"]
    assert list(line_numbers(path, [at for at, _ in found]).values()) == [1, 4, 5, 6]
