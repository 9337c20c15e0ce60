"""Owns the numbers of a run as TensorBoard reads them. Knows no training; tensorboard is no
requirement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_llm.errors import ConfigError


def check_tensorboard() -> None:
    """Raise ConfigError, with the command that mends it, unless tensorboard is installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard-dir needs tensorboard ({error}): pip install "
            '"mindspeed-llm[tensorboard]", or drop the flag'
        ) from None


class Board:
    """Scalars by iteration, under the names they have in train.jsonl.

    A continued run, or one that went back, hides what it will do again.
    """

    def __init__(self, directory: Path, *, after: int) -> None:
        check_tensorboard()
        self._directory = directory
        self._open(after)

    def _open(self, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=after + 1)

    def write(self, line: dict[str, Any]) -> None:
        """One iteration's or evaluation's numbers; numbers by turn become `name/turn`. What
        happened to a batch is no number."""
        if "event" in line:
            return
        step = line["iteration"]
        for name, value in line.items():
            parts = value if isinstance(value, dict) else {"": value}
            for part, number in parts.items():
                if name != "iteration" and isinstance(number, (int, float)):
                    tag = f"{name}/{part}" if part else name
                    self._writer.add_scalar(tag, number, step)
        self._writer.flush()

    def cut(self, after: int) -> None:
        """Hide the iterations behind `after`."""
        self._writer.close()
        self._open(after)
