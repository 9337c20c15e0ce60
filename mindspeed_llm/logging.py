"""Owns how the library speaks: one logger, one line a record; knows no command line."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

_ROOT = "mindspeed_llm"


def get_logger(name: str) -> logging.Logger:
    """Logger below `mindspeed_llm`; `name` is the module's `__name__`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def rank() -> int:
    """Global rank as torchrun gives it; 0 in a single process. Needs no process group."""
    return int(os.environ.get("RANK", "0"))


class _StandardError(logging.StreamHandler):
    """Writes to what standard error is now, not to what it was when the handler was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def configure(level: int = logging.INFO) -> None:
    """Send records to standard error; ranks above 0 speak from WARNING on. Safe to call twice."""
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level if rank() == 0 else max(level, logging.WARNING))
    if any(isinstance(handler, _StandardError) for handler in logger.handlers):
        return  # somebody else's handlers beside ours are theirs to keep
    handler = _StandardError()
    prefix = "" if rank() == 0 else f"[rank {rank()}] "
    handler.setFormatter(logging.Formatter(f"{prefix}%(levelname).1s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
