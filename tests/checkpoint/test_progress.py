"""The line of progress says share, rate and remaining time."""

import logging

from mindspeed_llm.checkpoint import progress
from mindspeed_llm.checkpoint.progress import ByteProgress


def test_line():
    shown = ByteProgress("converting", 400 * 2**20)
    shown.done = 100 * 2**20
    assert shown.line(2.0) == "converting: 100 of 400 MiB (25 %), 50 MiB/s, 6 s left"


def test_nothing_done_yet_and_nothing_to_do():
    assert "0 of 1 MiB" in ByteProgress("x", 2**20).line(0.0)
    assert "0 of 0 MiB" in ByteProgress("x", 0).line(1.0)


def test_lines_come_at_intervals_from_rank_0_only(monkeypatch):
    # A handler of its own: pytest's may hang on the library's logger and on the root logger.
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage()[:20])
    logger = logging.getLogger("mindspeed_llm")
    monkeypatch.setattr(logger, "handlers", [handler])
    before = logger.level
    logger.setLevel(logging.INFO)
    clock = iter([0.0, 1.0, 6.0, 7.0, 12.0, 0.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    try:
        with ByteProgress("saving", 4 * 2**20) as shown:
            for _ in range(4):
                shown.advance(2**20)
        assert said == ["saving: 2 of 4 MiB (", "saving: 4 of 4 MiB ("]
        monkeypatch.setenv("RANK", "1")
        with ByteProgress("saving", 4) as shown:
            shown.advance(1)
        assert len(said) == 2
    finally:
        logger.setLevel(before)
