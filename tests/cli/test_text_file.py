"""A text file is written whole or not at all."""

from pathlib import Path

import pytest

from mindspeed_llm.cli.text_file import write_text
from mindspeed_llm.errors import DataError


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "x")
    assert (tmp_path / "a" / "b.txt").read_text() == "x"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_text(tmp_path / "file" / "b.txt", "x")
    (tmp_path / "dir").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_text(tmp_path / "dir", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "dir", "file"]
