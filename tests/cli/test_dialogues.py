"""`mindspeed-llm dialogues` writes the files and says so."""

from pathlib import Path

import pytest

from mindspeed_llm.cli import main as cli


def test_writes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["dialogues", "--output", str(tmp_path), "--train", "2", "--talk", "1",
                     "--test", "2", "--distances", "2", "4"])  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'train.jsonl'}: 3 dialogues" in out
    assert f"{tmp_path / 'test.jsonl'}: 16 dialogues" in out
    assert len((tmp_path / "test.jsonl").read_text().splitlines()) == 16


@pytest.mark.parametrize(("flag", "value"), [("train", "0"), ("talk", "-1")])
def test_a_wrong_count_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    assert cli.main(["dialogues", "--output", str(tmp_path), f"--{flag}", value]) == 2
    err = capsys.readouterr().err
    assert f"--{flag} is {value}" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
