"""`evaluation.py` on a tiny model: a table, the file of results, and wrong input."""

import json
from pathlib import Path

import pytest

from mindspeed_llm.cli import evaluate, main
from mindspeed_llm.evaluation import dialogues


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    dialogues.write(folder, train=6, test=6, seed=0)
    return folder


def test_everything_at_once(
    tiny_chat_dir: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    # A distance of 1 in few words: the tiny tokenizer makes a token of almost every letter.
    code = main.run(evaluate.main, [
        "--load", str(tiny_chat_dir), "--prompt-type", "chatml", "--device", "cpu",
        "--data", str(files / "test.parquet"), "--replay", str(files / "guide.json"),
        "--json", str(out), "--max-new-tokens", "4", "--replay-tokens", "3",
    ])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result = json.loads(out.read_text())
    assert result["recall"]["all"]["dialogues"] == 6 == len(result["replies"])
    assert {"reply", "exact", "value", "stopped", "expected"} <= set(result["replies"][0])
    assert len(result["replay"]) == 3
    assert "exact match, %" in captured.out and captured.out.count("You >> ") == 3
    assert "recall: 6 of 6" in captured.err


@pytest.mark.parametrize(
    "flags,message",
    [([], "nothing to evaluate"), (["--data", "absent.parquet"], "needs"),
     (["--prompt-type", "chatml", "--data", "absent.parquet"], "no such file"),
     (["--prompt-type", "chatml", "--replay", "absent.json"], "cannot be read")],
)  # fmt: skip
def test_a_mistake_is_one_error(
    tiny_chat_dir: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(evaluate.main, ["--load", str(tiny_chat_dir), *flags]) == 2
    assert message in capsys.readouterr().err.replace("dialogues need the", "needs the")
