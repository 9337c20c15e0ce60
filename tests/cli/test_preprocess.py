"""Tests of mindspeed_llm.cli.preprocess: the guide's command line and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mindspeed_llm.cli import preprocess
from mindspeed_llm.cli.main import run

ROWS = [{"instruction": "B?", "input": "", "output": "b.", "histories": [["A?", "a."]]}] * 30
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def arguments(tmp_path, tiny_tokenizer_dir):
    source = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), source)
    return ["--input", str(source), "--tokenizer-name-or-path", str(tiny_tokenizer_dir),
            "--output-prefix", str(tmp_path / "finetune_dataset" / "alpaca"),
            "--workers", "4", "--log-interval", "10", "--tokenizer-type", "PretrainedFromHF",
            "--handler-name", "AlpacaStyleInstructionHandler", "--prompt-type", "gemma",
            "--map-keys", '{"history":"histories"}']  # fmt: skip


def test_the_guides_command(arguments, tmp_path):
    done = subprocess.run([sys.executable, str(REPOSITORY / "preprocess_data.py"), *arguments],
                          cwd=tmp_path, text=True, capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout and "ETA" in done.stderr
    names = {p.name for p in (tmp_path / "finetune_dataset").iterdir()}
    for key in ("input_ids", "attention_mask", "labels"):
        assert {f"alpaca_packed_{key}_document.bin", f"alpaca_packed_{key}_document.idx"} <= names
    manifest = json.loads((tmp_path / "finetune_dataset/alpaca_packed_manifest.json").read_text())
    assert manifest["rows"] == 30


def changed(arguments, **values):
    found = list(arguments)
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        found[found.index(flag) + 1] = value
    return found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": "nowhere.parquet"}, "--input nowhere.parquet: no such file"),
        ({"tokenizer_name_or_path": "nowhere"}, "--tokenizer-name-or-path nowhere"),
        ({"map_keys": '{"history":"turns"}'}, "no column 'turns' in the whole file"),
        ({"map_keys": "history"}, "not JSON"),
        ({"handler_name": "Other"}, "--handler-name Other"),
        ({"prompt_type": "other"}, "--prompt-type other: no such template"),
        ({"workers": "0"}, "--workers 0"),
        ({"tokenizer_type": "GPT2BPETokenizer"}, "tokenizer-type"),
    ],
)
def test_a_mistake_is_one_error_and_nothing_is_written(
    arguments, tmp_path, capsys, values, message
):
    assert run(preprocess.main, changed(arguments, **values)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1 and message in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.glob("finetune_dataset/*"))


@pytest.mark.parametrize("flag", ["--tokenizer-not-use-fast", "--cache-dir"])
def test_flags_that_cannot_be_honoured_say_why(arguments, capsys, flag):
    assert run(preprocess.main, [*arguments, flag]) == 2
    assert f"{flag} cannot be honoured here" in capsys.readouterr().err


def test_samples_are_shown_before_the_run(arguments, capsys, monkeypatch):
    real, seen = preprocess.prepare, []

    def watched(config, progress, show):
        def first(*shown):
            seen.append("shown")
            show(*shown)

        return real(config, lambda at: seen.append("chunk"), first)

    monkeypatch.setattr(preprocess, "prepare", watched)
    assert run(preprocess.main, [*arguments, "--workers", "1", "--show-samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert seen[:2] == ["shown", "chunk"] and seen.count("shown") == 1
    assert "row 0: " in printed and "row 1: " in printed and "row 2: " not in printed
    assert printed.index("row 1: ") < printed.index("rows read")
    trained = [line for line in printed.splitlines() if line[22:25] == "+++"]
    assert len(trained) >= 2 and all(line.endswith("<end_of_turn>") for line in trained)


def test_unusable_rows_are_not_shown(tmp_path, arguments, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text("not JSON\n" + '{"instruction": 1}\n' + json.dumps(ROWS[0]) + "\n")
    asked = changed(arguments, input=str(source), workers="1")
    assert run(preprocess.main, [*asked, "--show-samples", "9", "--on-bad-row", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "row 0: " in printed and "row 1: " not in printed
    assert run(preprocess.main, [*arguments, "--show-samples", "-1"]) == 2
