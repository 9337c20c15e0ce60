"""What was added is there again, whatever a killed run left behind."""

from pathlib import Path

import pytest

from mindspeed_llm.errors import DataError
from mindspeed_llm.inference.journal import Journal


def test_rows_come_back_in_another_run(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows"
    journal = Journal(path, {"old": 0})
    journal.add({"a": [1, 0.1 + 0.2], "b": {"text": "\u2028 ä"}})
    journal.add({"a": [2]})
    assert Journal(path).rows == {"a": [2], "b": {"text": "\u2028 ä"}}
    assert journal.rows == {"old": 0, "a": [2], "b": {"text": "\u2028 ä"}}
    journal.remove()
    assert not path.exists()


def test_the_half_line_of_a_killed_run_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    Journal(path).add({"a": 1, "b": 2})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        Journal(path).add({"c": 3})
        expected = {"c": 3} | ({"a": 1} if cut >= len('["a", 1]') else {})
        assert {k: v for k, v in Journal(path).rows.items() if k != "b"} == expected
    path.write_bytes(b"\xff\xfe\n7\n[1]\n" + whole)
    assert Journal(path).rows == {"a": 1, "b": 2}


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    journal = Journal(None, {"a": 1})
    journal.add({"b": 2})
    journal.remove()
    assert journal.rows == {"a": 1, "b": 2}


@pytest.mark.parametrize("name", ["file/rows", "directory"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    with pytest.raises(DataError, match=f"{name}: cannot be read or written"):
        Journal(tmp_path / name)
