"""`mindspeed-llm dialogues` writes the files and says so."""

from pathlib import Path

import pytest

from mindspeed_llm.cli import main as cli


def test_writes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["dialogues", "--output", str(tmp_path), "--train", "6", "--test", "6"])
    assert code == 0
    assert f"{tmp_path / 'train.parquet'}: 6 dialogues" in capsys.readouterr().out
    assert (tmp_path / "test.parquet").stat().st_size > 0


def test_a_wrong_count_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dialogues", "--output", str(tmp_path), "--train", "0"]) == 2
    err = capsys.readouterr().err
    assert "--train is 0" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
