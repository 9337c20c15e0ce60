"""Progress as lines: rate and remaining time, at intervals and at the end."""

import pytest

from mindspeed_llm.cli.progress import Lines, shown


def test_lines_come_at_intervals_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = Lines("answering", 40, clock=lambda: now[0])
    for second in (1.0, 6.0, 7.0, 8.0):
        now[0] = second
        lines.advance(10)
    said = capsys.readouterr().err.splitlines()
    assert said == ["answering: 20 of 40 (3.3/s, ETA 6 s)", "answering: 40 of 40 (5.0/s, ETA 0 s)"]


def test_without_a_terminal_lines_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("scoring", 2) as advance:
        advance(2)
    assert "scoring: 2 of 2" in capsys.readouterr().err
