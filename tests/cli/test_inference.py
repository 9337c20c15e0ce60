"""`inference.py` from the outside: pipes, a terminal, Ctrl-C, two ranks, wrong flags."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspeed_llm.cli.inference import line_reader, read_prompts, write_text
from mindspeed_llm.config.inference import TaskSettings
from mindspeed_llm.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
CHAT = ["inference.py", "--task", "chat", "--prompt-type", "chatml", "--max-new-tokens", "6"]


def _run(arguments: list[str], text: str = "", **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENV, input=text,
                          capture_output=True, text=True, timeout=200, **options)  # fmt: skip


def test_a_piped_conversation(tiny_chat_dir: Path) -> None:
    done = _run([*CHAT, "--load", str(tiny_chat_dir)], "hi\nnew\nhi\n\nq\nnever\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MindSpeed-LLM:\n") == 2
    first, second = done.stdout.split("[a new conversation: earlier turns are forgotten]")
    assert first.startswith("You >> hi\nMindSpeed-LLM:\n")
    reply = first.removeprefix("You >> hi\nMindSpeed-LLM:\n").split("\n\nYou >> new")[0]
    assert reply and reply in second
    assert done.stdout.endswith("You >> q\n") and "never" not in done.stdout


def test_two_ranks_say_the_same_as_one_and_leave_at_the_end_of_input(tiny_chat_dir: Path) -> None:
    alone = _run([*CHAT, "--load", str(tiny_chat_dir)], "hi\nand then?\n")
    launch = ["-m", "mindspeed_llm.cli.main", "launch", "--standalone", "--nproc_per_node", "2"]
    both = _run([*launch, *CHAT, "--load", str(tiny_chat_dir),
                 "--tensor-model-parallel-size", "2"], "hi\nand then?\n")  # fmt: skip
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    assert both.stdout == alone.stdout and "MindSpeed-LLM:" in alone.stdout


class Terminal:
    """A child behind a pseudo-terminal."""

    def __init__(self, arguments: list[str]) -> None:
        self.seen = b""
        parent, child = pty.openpty()
        self.fd = parent
        self.process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=ENV | {"TERM": "dumb"}, stdin=child,
            stdout=child, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        os.close(child)

    def wait_for(self, text: str, count: int = 1, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while self.seen.count(text.encode()) < count:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                self.seen += os.read(self.fd, 4096)

    def leave(self) -> int:
        """Press Ctrl-C until the child ends: the first may come before it waits for a line."""
        for _ in range(6):
            os.kill(self.process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(10)
        raise AssertionError(f"does not leave: {self.seen[-200:]!r}")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())


@pytest.fixture
def terminal(tiny_chat_dir: Path):
    long = [*CHAT[:-1], "400", "--load", str(tiny_chat_dir)]
    opened = Terminal(long)
    yield opened
    if opened.process.poll() is None:
        opened.process.kill()
    opened.process.wait()
    os.close(opened.fd)


def test_ctrl_c_stops_the_reply_and_then_leaves(terminal: Terminal) -> None:
    terminal.wait_for("You >> ")
    terminal.type("tell me a long story\n")
    terminal.wait_for("MindSpeed-LLM:")
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("You >> ", count=2)
    assert b"[stopped]" in terminal.seen
    assert terminal.process.poll() is None
    assert terminal.leave() == 0


def test_prompts_are_answered_and_written(tiny_chat_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Hello there"\n{"prompt": "My sister"}\n')
    output = tmp_path / "new" / "replies.jsonl"
    done = _run(["inference.py", "--load", str(tiny_chat_dir), "--prompts-file", str(prompts),
                 "--output", str(output), "--max-new-tokens", "5"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["Hello there", "My sister"]
    assert all(0 < row["tokens"] <= 5 for row in rows)
    assert all(f"You >> {row['prompt']}\nMindSpeed-LLM:\n" in done.stdout for row in rows)


@pytest.mark.parametrize(
    "flags,message",
    [(["--task", "chat"], "needs the chat template"),
     (["--task", "beam_search"], "beam search is not offered"),
     (["--task", "chat", "--prompt-type", "chatml", "--num-layers", "9"], "--num-layers is 9"),
     (["--task", "chat", "--prompt-type", "gemma", "--seq-length", "9999"], "--seq-length 9999"),
     (["--task", "chat", "--prompt-type", "chatml", "--historyturns", "2"], "--history-turns"),
     (["--system", "x", "--prompt", "y"], "--system has no place"),
     (["--task", "chat", "--prompt-type", "chatml", "--max-new-tokens", "512"], "no room"),
     (["--prompt", "hi", "--spec", "x"], "--spec cannot be honoured")],
)  # fmt: skip
def test_a_mistake_is_one_error(
    tiny_chat_dir: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mindspeed_llm.cli import inference, main

    assert main.run(inference.main, ["--load", str(tiny_chat_dir), *flags]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in captured.err


class Pipe(io.StringIO):
    """A stream that is no terminal."""


def test_lines_through_a_pipe_are_shown_after_their_prompt() -> None:
    out = Pipe()
    read = line_reader(Pipe("one\r\ntwo"), out)
    assert [read("You >> "), read("You >> ")] == ["one", "two"]
    with pytest.raises(EOFError):
        read("You >> ")
    assert out.getvalue() == "You >> one\nYou >> two\nYou >> "


def test_where_prompts_come_from(tmp_path: Path) -> None:
    assert read_prompts(TaskSettings(prompt="a"), Pipe("b")) == ["a"]
    assert read_prompts(TaskSettings(), Pipe("b\n\nc\n")) == ["b", "c"]
    text = tmp_path / "p.txt"
    text.write_text("x\n\ny\n")
    assert read_prompts(TaskSettings(prompts_file=text), Pipe("")) == ["x", "y"]
    with pytest.raises(ConfigError, match="no prompt to answer"):
        read_prompts(TaskSettings(), Pipe(""))
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(TaskSettings(prompts_file=tmp_path / "absent"), Pipe(""))
    lines = tmp_path / "p.jsonl"
    lines.write_text('"ok"\n[1]\n')
    with pytest.raises(DataError, match=r"p\.jsonl:2: expected a text"):
        read_prompts(TaskSettings(prompts_file=lines), Pipe(""))
    lines.write_text("{")
    with pytest.raises(DataError, match=r"p\.jsonl:1: not JSON"):
        read_prompts(TaskSettings(prompts_file=lines), Pipe(""))


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "x")
    assert (tmp_path / "a" / "b.txt").read_text() == "x"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_text(tmp_path / "file" / "b.txt", "x")
    (tmp_path / "dir").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_text(tmp_path / "dir", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "dir", "file"]
