"""Owns when a run ends before its last iteration: signals, time, an iteration to leave at. All
ranks decide the same, through one collective an iteration. Knows neither models nor files.

SIGTERM and SIGUSR1 are answered at the end of the iteration; the same signal again ends the
process at once.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from mindspeed_llm.config.run import ControlSettings

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclasses.dataclass(frozen=True)
class Ending:
    """Why a run ends early, in words, and the exit code of all its processes."""

    why: str
    code: int


class Control:
    """Asked after every iteration whether the run ends; a context manager, which hears signals.

    Args:
        began: `time.monotonic()` at the start of the run.
        device: of the collective.
    """

    def __init__(self, settings: ControlSettings, *, began: float, device: torch.device) -> None:
        self._settings, self._began, self._device = settings, began, device
        self._heard = 0
        self._before: dict[int, Any] = {}

    def after(self, iteration: int) -> Ending | None:
        """Whether the run ends after `iteration`; every rank calls it and gets the same answer."""
        minutes = self._settings.exit_duration_in_mins
        is_late = minutes is not None and time.monotonic() - self._began > 60 * minutes
        votes = torch.tensor([self._heard, int(is_late)], device=self._device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        number, late = votes.tolist()
        if number:
            return Ending(signal.Signals(number).name, 128 + number)
        if late:
            return Ending(f"--exit-duration-in-mins {minutes:g}", 0)
        every = self._settings.exit_interval
        if every is not None and iteration % every == 0:
            return Ending(f"--exit-interval {every}", 0)
        return None

    def deaf(self) -> None:
        """From here on signals change nothing: everything is done, and the exit code decided."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._before = {}

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self._heard == number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._heard = number

    def __enter__(self) -> Control:
        # Elsewhere than in the main thread, Python has no handlers; then the embedding program has.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
