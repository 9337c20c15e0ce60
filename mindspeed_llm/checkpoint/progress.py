"""Owns how the copying of many bytes is shown: a bar on a terminal, lines at intervals elsewhere.

It knows no files; others tell it the bytes that are done.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

from mindspeed_llm.logging import get_logger, rank

_log = get_logger(__name__)
_INTERVAL = 5.0  # seconds between lines where there is no terminal


class ByteProgress:
    """Context that reports `what` with rate and remaining time; only rank 0 speaks.

    Args:
        what: what is going on, e.g. "converting".
        total: bytes in all.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._start = self._last = time.monotonic()
        self._bar: RichProgress | None = None
        if rank() == 0 and sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                TransferSpeedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar.add_task(what, total=total)

    def __enter__(self) -> ByteProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        self.done += count
        if self._bar:
            self._bar.advance(self._bar.task_ids[0], count)
            return
        now = time.monotonic()
        if now - self._last >= _INTERVAL and rank() == 0:
            self._last = now
            _log.info("%s", self.line(now - self._start))

    def line(self, elapsed: float) -> str:
        """One line of progress after `elapsed` seconds."""
        rate = self.done / max(elapsed, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        share = 100 * self.done / max(self.total, 1)
        return (f"{self.what}: {self.done / 2**20:.0f} of {self.total / 2**20:.0f} MiB "
                f"({share:.0f} %), {rate / 2**20:.0f} MiB/s, {left:.0f} s left")  # fmt: skip
