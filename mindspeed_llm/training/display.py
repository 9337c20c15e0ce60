"""Owns how a run is shown while it runs: a live line and a table on a terminal, plain lines
elsewhere. Knows only records; what is kept in files is not its business.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mindspeed_llm.logging import get_logger
from mindspeed_llm.training.metrics import Clock, Record

_log = get_logger(__name__)


def line_of(record: Record) -> str:
    """The numbers of an iteration in one line."""
    return (
        f"loss {record.loss:.4f} | lr {record.lr:.3g} | grad norm {record.grad_norm:.3f} | "
        f"{record.tokens_per_second:.0f} tokens/s ({record.supervised_share:.0%} supervised, "
        f"{record.supervised_tokens_per_second:.0f}/s, {record.padding_share:.0%} padding) | "
        f"{_speed(record)} | {record.memory_gib:.1f} GiB | {record.seconds:.2f} s"
    )


def _speed(record: Record) -> str:
    speed = f"{record.tflops_per_device:.3g} TFLOP/s"
    return speed if record.mfu is None else f"{speed}, MFU {record.mfu:.1%}"


def duration(seconds: float) -> str:
    """3725.4 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# Columns of the table: title, width, what stands there.
_COLUMNS: tuple[tuple[str, int, Callable[[Record], str]], ...] = (
    ("loss", 7, lambda r: f"{r.loss:.4f}"),
    ("lr", 8, lambda r: f"{r.lr:.3g}"),
    ("grad norm", 9, lambda r: f"{r.grad_norm:.3f}"),
    ("tokens/s", 8, lambda r: f"{r.tokens_per_second:.0f}"),
    ("superv./s", 9, lambda r: f"{r.supervised_tokens_per_second:.0f}"),
    ("padding", 7, lambda r: f"{r.padding_share:.0%}"),
    ("TFLOP/s", 7, lambda r: f"{r.tflops_per_device:.3g}"),
    ("MFU", 5, lambda r: "-" if r.mfu is None else f"{r.mfu:.1%}"),
    ("GiB", 5, lambda r: f"{r.memory_gib:.1f}"),
    ("s", 7, lambda r: f"{r.seconds:.2f}"),
)
_HEADING = 20  # rows of the table from one heading to the next
_ETA = 8


def heading(total: int) -> str:
    """Titles of the table of a run of `total` iterations."""
    cells = [title.rjust(width) for title, width, _ in _COLUMNS]
    return "  ".join(["iteration".rjust(_counter(total)), *cells, "ETA".rjust(_ETA)])


def row_of(record: Record, total: int, left: str) -> str:
    """A row of the table; `left` is the time that is left."""
    cells = [value(record).rjust(width) for _, width, value in _COLUMNS]
    at = f"{record.iteration}/{total}".rjust(_counter(total))
    return "  ".join([at, *cells, left.rjust(_ETA)])


def _counter(total: int) -> int:
    return max(len("iteration"), 2 * len(str(total)) + 1)


class Display:
    """Shows iterations `first` + 1 to `total`; a context manager, silent when not `shown`.

    On a terminal one live line follows every iteration, and a row of a table is written every
    `interval` (a line, where the table is too wide); elsewhere lines, through the logger.
    """

    def __init__(
        self, *, first: int, total: int, interval: int, shown: bool, console: Console | None = None
    ) -> None:
        self._total, self._interval, self._shown = total, interval, shown
        self._clock = Clock()
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._rows = 0
        if shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("iteration"), MofNCompleteColumn(), BarColumn(bar_width=20),
                TextColumn("{task.fields[numbers]}"), console=self._console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, completed=first, numbers="")

    def iteration(self, record: Record) -> None:
        """Show a finished iteration."""
        self._clock.add(record.seconds)
        left = duration(self._clock.left(self._total - record.iteration))
        last = record.iteration == self._total
        if self._bar is not None:
            short = (
                f"loss {record.loss:.4f} | {record.tokens_per_second:.0f} tokens/s | "
                f"{_speed(record)} | ETA {left}"
            )
            self._bar.update(self._task, completed=record.iteration, numbers=short)
        if record.iteration % self._interval and not last:
            return
        titles = heading(self._total)
        if self._bar is None or self._console.width < len(titles):
            self.say(f"iteration {record.iteration}/{self._total} | {line_of(record)} | ETA {left}")
            return
        if self._rows % _HEADING == 0:
            self.say(titles)
        self._rows += 1
        self.say(row_of(record, self._total, left))

    def say(self, text: str) -> None:
        """Write a lasting line; above the live one, if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self._shown:
            _log.info("%s", text)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
