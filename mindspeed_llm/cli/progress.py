"""Owns how work on many items is shown: a bar on a terminal, lines at intervals elsewhere; it knows
nothing of the items."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_INTERVAL = 5.0  # seconds between lines where there is no terminal


@contextmanager
def shown(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Context that gives a function to call with the number of items just done."""
    if not sys.stderr.isatty():
        yield Lines(what, total).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


class Lines:
    """One line with rate and remaining time every few seconds, and at the end."""

    def __init__(self, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.total, self.done = what, total, 0
        self._clock = clock
        self._start = self._last = clock()

    def advance(self, count: int) -> None:
        """`count` more items are done."""
        self.done += count
        now = self._clock()
        if now - self._last < _INTERVAL and self.done < self.total:
            return
        self._last = now
        rate = self.done / max(now - self._start, 1e-9)
        left = (self.total - self.done) / rate
        print(f"{self.what}: {self.done} of {self.total} ({rate:.1f}/s, ETA {left:.0f} s)",
              file=sys.stderr, flush=True)  # fmt: skip
