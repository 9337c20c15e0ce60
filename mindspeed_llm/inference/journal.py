"""Owns a file of rows by their keys, to which a run adds as it goes and with which an interrupted
one goes on; what the rows say, and what a key stands for, it does not know."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mindspeed_llm.errors import DataError
from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)


class Journal:
    """Rows of JSON by their keys, in memory and in a file.

    Nothing in the file is ever changed: a line is added, whole, when its row comes. The half line
    of a run that was killed is left where it is, and not read.

    Args:
        path: a line [key, row] for each row; made, with its directory, unless it is there. None: in
            memory alone.
        rows: others that are known already; they are not written again.

    Attributes:
        rows: all of them by key; of two with one key the later one.

    Raises:
        DataError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None, rows: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.rows: dict[str, Any] = dict(rows or {})
        if path is None:
            return
        with _opened(path) as file:
            file.seek(0)
            text = file.read().decode("utf-8", errors="replace")
            if text and not text.endswith("\n"):
                file.write(b"\n")
        found = dict(_rows_of(text))
        self.rows |= found
        if found:
            _log.info("%s: %d answers of an earlier, unfinished run", path, len(found))

    def add(self, rows: Mapping[str, Any]) -> None:
        """Keep these rows, whatever happens next.

        Raises:
            DataError: they cannot be written.
        """
        self.rows |= rows
        if self.path is not None:
            text = "".join(json.dumps([key, row]) + "\n" for key, row in rows.items())
            with _opened(self.path) as file:
                file.write(text.encode())

    def remove(self) -> None:
        """Delete the file: what is in it has another place now."""
        if self.path is not None:
            self.path.unlink()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """For reading, and for adding at the end; made if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            yield file
    except OSError as err:
        raise DataError(f"{path}: cannot be read or written: {err.strerror}") from err


def _rows_of(text: str) -> Iterator[tuple[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            key, row = json.loads(line)
            yield str(key), row
