"""What an evaluation is given is read back, or named where it is wrong."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mindspeed_llm.errors import DataError
from mindspeed_llm.evaluation import dialogues
from mindspeed_llm.evaluation.dialogues import generate
from mindspeed_llm.evaluation.files import read_dialogues, read_script


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    dialogues.write(tmp_path, train=6, test=12, seed=1)
    assert read_dialogues(tmp_path / "test.parquet", scored=True) == generate("test", 12, 1)
    plain = read_dialogues(tmp_path / "ordinary.parquet", scored=False)
    assert plain == dialogues.ordinary()


def _write(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_files_of_the_wrong_shape_are_named(tmp_path: Path) -> None:
    whole = {"instruction": ["q"], "input": [""], "output": ["a"], "histories": [[["u", "b"]]],
             "kind": ["fact"], "distance": [1], "expected": [["a"]],
             "forbidden": [["c"]]}  # fmt: skip
    assert len(read_dialogues(_write(tmp_path / "ok.parquet", **whole), scored=True)) == 1
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but not really")
    without = {k: v for k, v in whole.items() if k != "kind"}
    for path, scored, message in [
        (tmp_path / "absent.parquet", True, "no such file"),
        (tmp_path / "no.parquet", True, "not a parquet"),
        (_write(tmp_path / "k.parquet", **without), True, "no column kind"),
        (_write(tmp_path / "t.parquet", **whole | {"output": [""]}), True, "row 1: a turn"),
        (_write(tmp_path / "h.parquet", **whole | {"histories": [[["u"]]]}), False, "row 1: hist"),
        (_write(tmp_path / "e.parquet", **whole | {"expected": [[]]}), True, "row 1"),
    ]:
        with pytest.raises(DataError, match=message):
            read_dialogues(path, scored=scored)


@pytest.mark.parametrize("data", [["a", "b"], {"user": ["a", "b"]}])
def test_scripts(tmp_path: Path, data: object) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(data))
    assert read_script(path) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[" "]', '{"user": "a"}'])
def test_wrong_scripts_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "script.json"
    path.write_text(text)
    with pytest.raises(DataError, match="script.json"):
        read_script(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_script(tmp_path / "absent.json")
