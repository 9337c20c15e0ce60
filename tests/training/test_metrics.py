"""Numbers of a run, the record file of an interrupted one, the curve."""

import json
import sys

import pytest

from mindspeed_llm.training.metrics import (
    Clock,
    Record,
    RecordFile,
    Totals,
    draw_curve,
    read_records,
)

TOTALS = Totals(loss_sum=30.0, supervised=20, real_tokens=80, padded_tokens=100)


def test_record_counts_real_tokens():
    record = Record.of(TOTALS, iteration=3, consumed=24, lr=1e-4, norm=0.5, seconds=2.0)
    assert record.loss == 1.5
    assert record.tokens_per_second == 40 and record.supervised_tokens_per_second == 10
    assert record.supervised_share == 0.25
    assert record.padding_share == pytest.approx(0.2)


def test_clock_forgets_the_first_iteration():
    clock = Clock(window=2)
    clock.add(100.0)
    assert clock.left(3) == 300.0
    clock.add(1.0)
    assert clock.left(3) == 3.0
    clock.add(2.0)
    clock.add(4.0)
    assert clock.left(2) == 6.0


def test_a_continued_run_cuts_off_what_it_will_do_again(tmp_path):
    with RecordFile(tmp_path, after=0) as file:
        for iteration in (1, 2, 3):
            file.write({"iteration": iteration, "loss": float(iteration)})
    path = tmp_path / "train.jsonl"
    with path.open("a") as half:
        half.write('{"iteration": 4, "lo')  # killed while writing
    with RecordFile(tmp_path, after=2) as file:
        file.write({"iteration": 3, "loss": 9.0})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0, 9.0]
    with RecordFile(tmp_path, after=0):
        assert read_records(path) == []


def test_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    with RecordFile(tmp_path, after=0) as file:
        file.write({"iteration": 1, "loss": 2.0})
        file.write({"iteration": 2, "loss": 1.0})
        file.write({"iteration": 2, "validation_loss": 1.5})
    said = draw_curve(tmp_path / "train.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "loss.png" in said and not (tmp_path / "loss.tmp").exists()


def test_without_matplotlib_the_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = draw_curve(tmp_path / "train.jsonl", tmp_path / "loss.png")
    assert "pip install matplotlib" in said
    assert not (tmp_path / "loss.png").exists()
