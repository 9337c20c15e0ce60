"""Owns where a user's lines come from: an editor at a terminal, a pipe, or a file. It knows nothing
of what they mean."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from mindspeed_llm.errors import DataError

ReadLine = Callable[[str], str]
_KEPT = 2000  # lines of the history file


def line_reader(
    stdin: TextIO, stdout: TextIO, *, history: Path | None = None, words: Iterable[str] = ()
) -> ReadLine:
    """A function that shows a prompt and returns a line; EOFError at the end of the input.

    At a terminal lines can be edited and earlier ones recalled. What comes through a pipe is shown
    after its prompt, so that the transcript can be read.

    Args:
        stdin: the user's.
        stdout: where prompts go.
        history: file of earlier lines, which is made with mode 0600; None keeps nothing.
        words: completed at the beginning of a line.

    Raises:
        DataError: the history file cannot be used.
    """
    if not (stdin.isatty() and stdout.isatty()):
        return _told(stdin, stdout)
    path = None if history is None else private_file(history)
    try:
        return _prompt_toolkit(path, words)
    except ImportError:
        return _readline(path)


def script_reader(path: Path, stdout: TextIO) -> ReadLine:
    """Lines of a file, shown after their prompts.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"--script {path}: cannot be read: {err}") from err
    return _told(iter(lines), stdout)


def silent(read: ReadLine) -> ReadLine:
    """`read` without its prompts."""
    return lambda _prompt: read("")


def _told(lines: Iterable[str], stdout: TextIO) -> ReadLine:
    rest = iter(lines)

    def read(prompt: str) -> str:
        line = next(rest, None)
        if line is None:
            raise EOFError
        line = line.rstrip("\r\n")
        if prompt:
            stdout.write(f"{prompt}{line}\n")
            stdout.flush()
        return line

    return read


def private_file(path: Path) -> Path:
    """`path`, which exists from now on; a regular file can be read by its owner alone.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        if path.is_file():
            path.chmod(0o600)
    except OSError as err:
        raise DataError(
            f"{path}: what is typed cannot be kept there: {err.strerror}; choose another "
            "--history-file, or --no-history-file"
        ) from err
    return path


def default_history() -> Path:
    """$XDG_STATE_HOME/mindspeed-llm/chat_history."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mindspeed-llm" / "chat_history"


def _prompt_toolkit(path: Path | None, words: Iterable[str]) -> ReadLine:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    session: Any = PromptSession(
        history=InMemoryHistory() if path is None else FileHistory(path),
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
    )
    return session.prompt


def _readline(path: Path | None) -> ReadLine:
    """input(), with the line editor and the history of the standard library where it has them."""
    try:
        import readline
    except ImportError:  # a Python built without it: input() still reads lines
        return input
    if path is None:
        return input
    with contextlib.suppress(OSError):  # another editor's history, or an unreadable one
        readline.read_history_file(path)
    readline.set_history_length(_KEPT)

    def read(prompt: str) -> str:
        line = input(prompt)
        with contextlib.suppress(OSError):  # a full disk ends no conversation
            readline.write_history_file(path)
        return line

    return read
