"""Owns how a run is shown while it runs: a live line on a terminal, plain lines elsewhere. Knows
only records; what is kept in files is not its business.
"""

from __future__ import annotations

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


class Display:
    """Shows iterations `first` + 1 to `total`; a context manager, silent when not `shown`.

    On a terminal one live line follows every iteration, and a lasting line is written every
    `interval`; elsewhere only the lasting ones, through the logger.
    """

    def __init__(
        self, *, first: int, total: int, interval: int, shown: bool, console: Console | None = None
    ) -> None:
        self._total, self._interval, self._shown = total, interval, shown
        self._clock = Clock()
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
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
            self._bar.update(
                self._task, completed=record.iteration, numbers=f"{line_of(record)} | ETA {left}"
            )
        if record.iteration % self._interval == 0 or last:
            self.say(f"iteration {record.iteration}/{self._total} | {line_of(record)} | ETA {left}")

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
