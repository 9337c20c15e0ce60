"""Owns a trace of some iterations, written with torch.profiler for chrome://tracing or Perfetto.
Knows nothing of what it traces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)


class Trace:
    """Traces the iterations behind `start`, up to and with `end`, into one file in `directory`."""

    def __init__(
        self, directory: Path, *, start: int, end: int, rank: int, device: torch.device
    ) -> None:
        self._first, self._last = start + 1, end
        self.path = directory / f"trace-iterations-{start + 1}-{end}-rank{rank}.json"
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profile: profile | None = None

    @contextlib.contextmanager
    def around(self, iteration: int) -> Iterator[None]:
        """Runs around the iteration; begins and ends the trace where it should."""
        if self._first <= iteration and self._profile is None and iteration <= self._last:
            self._profile = profile(activities=self._activities)
            self._profile.start()
        try:
            yield
        finally:  # also where the last one was a batch that is left out
            if iteration >= self._last:
                self._finish()

    def _finish(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.path))
            _log.info("trace: %s", self.path)
            self._profile = None
