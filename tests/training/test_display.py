"""One lasting line an interval, a live one on a terminal only, silence on other ranks."""

import io

import pytest
from rich.console import Console

from mindspeed_llm.training.display import Display, duration
from mindspeed_llm.training.metrics import Record, Totals


def record(iteration):
    totals = Totals(loss_sum=30.0, supervised=20, real_tokens=80, padded_tokens=100)
    return Record.of(totals, iteration=iteration, consumed=8, lr=1e-4, norm=0.5, seconds=2.0)


def run(console, shown=True):
    with Display(first=0, total=5, interval=2, shown=shown, console=console) as display:
        for iteration in range(1, 6):
            display.iteration(record(iteration))


def test_plain_lines_at_the_interval_and_at_the_end(monkeypatch):
    heard = []
    monkeypatch.setattr(
        "mindspeed_llm.training.display._log.info", lambda form, *a: heard.append(form % a)
    )
    out = io.StringIO()
    run(Console(file=out, force_terminal=False))
    assert out.getvalue() == ""
    assert [line.split(" | ")[0] for line in heard] == [
        "iteration 2/5", "iteration 4/5", "iteration 5/5",
    ]  # fmt: skip
    for word in ("loss 1.5000", "lr 0.0001", "grad norm 0.500", "40 tokens/s", "25% supervised",
                 "20% padding", "ETA 0:00:06"):  # fmt: skip
        assert word in heard[0]


def test_a_terminal_has_a_live_line_and_a_table():
    out = io.StringIO()
    run(Console(file=out, force_terminal=True, width=200))
    assert "\x1b[" in out.getvalue() and "loss 1.5000 | 40 tokens/s" in out.getvalue()
    plain = out.getvalue().replace("\x1b[2K", "").splitlines()
    lines = [line for line in plain if "|" not in line]
    (titles,) = (line for line in lines if "tokens/s" in line)
    rows = [line for line in lines if "/5 " in line]
    assert titles.split() == [
        "iteration", "loss", "lr", "grad", "norm", "tokens/s", "superv./s", "padding", "TFLOP/s",
        "MFU", "GiB", "s", "ETA",
    ]  # fmt: skip
    assert [row.split()[-12:] for row in rows][:2] == [
        [f"{n}/5", "1.5000", "0.0001", "0.500", "40", "10", "20%", "0", "-", "0.0", "2.00", left]
        for n, left in ((2, "0:00:06"), (4, "0:00:02"))
    ]


def test_the_table_has_a_heading_every_twenty_rows():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    with Display(first=0, total=41, interval=1, shown=True, console=console) as display:
        for iteration in range(1, 42):
            display.iteration(record(iteration))
    assert out.getvalue().count("superv./s") == 3


def test_a_narrow_terminal_has_lines():
    out = io.StringIO()
    run(Console(file=out, force_terminal=True, width=80))
    assert "iteration 4/5 | loss 1.5000" in out.getvalue() and "superv./s" not in out.getvalue()


def test_other_ranks_are_silent(monkeypatch):
    def fail(*_):
        raise AssertionError("spoke")

    monkeypatch.setattr("mindspeed_llm.training.display._log.info", fail)
    out = io.StringIO()
    run(Console(file=out, force_terminal=True), shown=False)
    assert out.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (3725.4, "1:02:05")])
def test_duration(seconds, text):
    assert duration(seconds) == text
