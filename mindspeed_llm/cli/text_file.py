"""Owns writing a text file that is complete or absent; knows nothing of what is in it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mindspeed_llm.errors import DataError


def write_text(path: Path, text: str) -> None:
    """Write a file that is complete or absent; its directory is made.

    Raises:
        DataError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as err:
        with contextlib.suppress(OSError):  # there may be nothing, or no directory, to clean
            temporary.unlink()
        raise DataError(f"{path}: cannot be written: {err.strerror}") from err
