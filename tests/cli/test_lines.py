"""Lines from pipes, files and editors; the file of earlier lines belongs to its owner."""

import io
import os
from pathlib import Path

import pytest

from mindspeed_llm.cli.lines import (
    default_history,
    line_reader,
    private_file,
    script_reader,
    silent,
)
from mindspeed_llm.errors import DataError


class Pipe(io.StringIO):
    """A stream that is no terminal."""


def test_lines_through_a_pipe_are_shown_after_their_prompt() -> None:
    out = Pipe()
    read = line_reader(Pipe("one\r\ntwo"), out)
    assert [read("You >> "), read("You >> ")] == ["one", "two"]
    with pytest.raises(EOFError):
        read("You >> ")
    assert out.getvalue() == "You >> one\nYou >> two\n", "no prompt without its line"


def test_a_machine_sees_no_prompts() -> None:
    out = Pipe()
    read = silent(line_reader(Pipe("one\n"), out))
    assert read("You >> ") == "one" and out.getvalue() == ""


def test_a_script(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\n\ntwo")
    out = Pipe()
    read = script_reader(path, out)
    assert [read("> ") for _ in range(3)] == ["one", "", "two"]
    with pytest.raises(EOFError):
        read("> ")
    assert out.getvalue() == "> one\n> \n> two\n"
    path.write_bytes(b"\xff\xfe")
    for wrong in (path, tmp_path / "absent"):
        with pytest.raises(DataError, match="--script .*cannot be read"):
            script_reader(wrong, out)


def test_the_file_of_earlier_lines_is_private(tmp_path: Path) -> None:
    path = private_file(tmp_path / "new" / "history")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    path.write_text("kept\n")
    private_file(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == "kept\n"
    mode = os.stat("/dev/null").st_mode
    assert private_file(Path("/dev/null")).stat().st_mode == mode
    with pytest.raises(DataError, match="--no-history-file"):
        private_file(path / "below")


def test_where_lines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_history() == Path("/state/mindspeed-llm/chat_history")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/me")
    assert default_history() == Path("/me/.local/state/mindspeed-llm/chat_history")


def test_prompt_toolkit_edits_and_takes_pasted_lines(tmp_path: Path) -> None:
    toolkit = pytest.importorskip("prompt_toolkit", reason="the extra `chat`")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from mindspeed_llm.cli import lines

    history = private_file(tmp_path / "history")
    keys = "helo\x1b[Dl\r" + "\x1b[200~two\nlines\x1b[201~\r"
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        with toolkit.application.create_app_session(input=pipe, output=DummyOutput()):
            read = lines._prompt_toolkit(history, ["/help"])
            assert [read("> ") for _ in range(2)] == ["hello", "two\nlines"]
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
