"""`evaluation.py` on a tiny model: tables, the file of results, two models, and wrong input."""

import json
from pathlib import Path

import pytest

from mindspeed_llm.cli import evaluate, main
from mindspeed_llm.evaluation import files
from mindspeed_llm.evaluation.dialogues import test_set as draw_test_set
from mindspeed_llm.evaluation.dialogues import training_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    # Short ones: the tiny tokenizer makes a token of almost every letter.
    short = [d for d in draw_test_set(4, 0, (2,))
             if sum(len(t.user) + len(t.assistant) for t in d.turns) < 280]  # fmt: skip
    assert len({d.family for d in short[:8]}) >= 3
    files.write(folder, train=training_set(1, 0), talk=[], test=short[:8])
    return folder


def test_everything_at_once_and_a_comparison_with_it(
    tiny_chat_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, both, png = (tmp_path / name for name in ("one.json", "both.json", "recall.png"))
    flags = ["--load", str(tiny_chat_dir), "--prompt-type", "chatml", "--device", "cpu",
             "--data", str(folder / "test.jsonl"), "--input", str(folder / "ordinary.jsonl"),
             "--max-conversations", "3", "--max-new-tokens", "4"]  # fmt: skip
    code = main.run(evaluate.main, [*flags, "--replay", str(folder / "guide.json"),
                                    "--replay-tokens", "3", "--json", str(out)])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result = json.loads(out.read_text())
    assert result["recall"]["all"]["dialogues"] == 8 == len(result["replies"])
    assert {"replies", "exact", "value", "stopped", "family"} <= set(result["replies"][0])
    assert result["input"]["dialogues"] == 3 and result["input"]["perplexity"] > 1
    assert result["history_gain"]["dialogues"] >= 2 and len(result["replay"]) == 3
    assert "exact, %" in captured.out and captured.out.count("You >> ") == 3
    assert "recall: " in captured.err and "perplexity" in captured.out

    code = main.run(evaluate.main, [*flags, "--compare", str(out), "--json", str(both),
                                    "--png", str(png)])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "exact, mean" in captured.out and "history gain over none" in captured.out
    # The same model twice: the same numbers twice.
    again = json.loads(both.read_text())
    assert again["compare"]["recall"] == again["recall"] == result["recall"]
    assert again["compare"]["input"] == again["input"] and png.stat().st_size > 10_000


def test_a_directory_to_compare_with_is_evaluated_first_and_an_interrupted_run_goes_on(
    tiny_chat_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from mindspeed_llm.evaluation import run
    from mindspeed_llm.inference.engine import Engine

    flags = ["--load", str(tiny_chat_dir), "--compare", str(tiny_chat_dir), "--prompt-type",
             "chatml", "--device", "cpu", "--input", str(folder / "ordinary.jsonl"),
             "--max-conversations", "2", "--json", str(tmp_path / "r.json")]  # fmt: skip

    def press_ctrl_c(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "history_gain", press_ctrl_c)
        assert main.run(evaluate.main, flags) not in (0, 2)
    first = capsys.readouterr()
    assert [path.name for path in tmp_path.iterdir()] == ["r.json.part"]
    asked: list[int] = []
    scores = Engine.scores

    def counted(self: Engine, rows: list, **options: object) -> list:
        asked.append(len(rows))
        return scores(self, rows, **options)

    monkeypatch.setattr(Engine, "scores", counted)
    code = main.run(evaluate.main, flags)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.count("loss on conversations: ") == 2
    assert first.out.splitlines()[-1] in captured.out, "the same numbers"
    # Two conversations were scored before; the same weights are not asked twice.
    assert sum(asked) == 3 * 2
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["compare"]["input"] == result["input"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    "flags,message",
    [([], "nothing to evaluate"), (["--data", "absent.jsonl"], "needs"),
     (["--prompt-type", "chatml", "--data", "absent.jsonl"], "cannot be read"),
     (["--prompt-type", "chatml", "--input", "absent.jsonl"], "no such file"),
     (["--prompt-type", "chatml", "--replay", "absent.json"], "cannot be read"),
     (["--prompt-type", "chatml", "--replay", "absent.json", "--compare", "no.json"],
      "--compare no.json: cannot be read")],
)  # fmt: skip
def test_a_mistake_is_one_error(
    tiny_chat_dir: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(evaluate.main, ["--load", str(tiny_chat_dir), *flags]) == 2
    assert message in capsys.readouterr().err.replace("dialogues need the", "needs the")


def test_several_processes_compare_with_a_file(
    tiny_chat_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    code = main.run(evaluate.main, ["--load", str(tiny_chat_dir), "--prompt-type", "chatml",
                                    "--replay", str(folder / "guide.json"),
                                    "--compare", str(tiny_chat_dir)])  # fmt: skip
    assert code == 2 and "--json FILE" in capsys.readouterr().err
