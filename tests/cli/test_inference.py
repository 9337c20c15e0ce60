"""`inference.py` from the outside: pipes, a terminal, Ctrl-C, two ranks, wrong flags."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

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
    assert "You >> You" not in done.stdout


def test_a_script_answered_in_json_saved_and_replayed(tiny_chat_dir: Path, tmp_path: Path) -> None:
    """Undo, another reply, dropped turns: the replay makes the same ids from nothing."""
    saved, script = tmp_path / "talk.json", tmp_path / "script.txt"
    script.write_text(
        "hi\nmy sister likes roses\n/regen\n/undo\nmy sister likes pink roses\nand then?\n"
        f"which colour?\n/save {saved}\n"
    )
    flags = [*CHAT, "--load", str(tiny_chat_dir), "--json", "--temperature", "0.9"]
    done = _run([*flags, "--script", str(script), "--logprobs", "1", "--history-turns", "2"])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    replies = [row for row in rows if "text" in row]
    assert [row["turn"] for row in replies] == [1, 2, 2, 2, 3, 4]
    assert replies[1]["ids"] != replies[2]["ids"], "another reply of another seed"
    assert replies[2]["usage"]["cached_tokens"] > 0
    assert all(len(row["logprobs"]) == len(row["ids"]) for row in replies)
    again = _run([*flags, "--session", str(saved)], "/replay\n/show\n")
    notices = [json.loads(line)["notice"] for line in again.stdout.splitlines()]
    assert "4 of 4 replies made again are the same" in notices, again.stderr
    assert "history_turns 2" in notices and "logprobs 1" in notices


def test_two_ranks_say_the_same_as_one_and_leave_at_the_end_of_input(tiny_chat_dir: Path) -> None:
    alone = _run([*CHAT, "--load", str(tiny_chat_dir)], "hi\nand then?\n")
    launch = ["-m", "mindspeed_llm.cli.main", "launch", "--standalone", "--nproc_per_node", "2"]
    both = _run([*launch, *CHAT, "--load", str(tiny_chat_dir),
                 "--tensor-model-parallel-size", "2"], "hi\nand then?\n")  # fmt: skip
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    assert both.stdout == alone.stdout and "MindSpeed-LLM:" in alone.stdout


def _hears_ctrl_c() -> None:
    """Whoever runs the tests in the background has SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A child behind a pseudo-terminal."""

    def __init__(self, arguments: list[str], controls: bool = False, **env: str) -> None:
        self.seen = b""

        def ready() -> None:
            _hears_ctrl_c()
            if controls:  # the terminal's own Control-C goes to whom it controls
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        parent, child = pty.openpty()
        self.fd = parent
        self.process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=ENV | {"TERM": "dumb"} | env, stdin=child,
            stdout=child, stderr=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=ready)  # fmt: skip
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


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_stops_the_reply_on_both_ranks(tiny_chat_dir: Path) -> None:
    """Control-C typed at the terminal reaches launcher and ranks alike; the next turn answers."""
    launch = ["-m", "mindspeed_llm.cli.main", "launch", "--standalone", "--nproc_per_node", "2"]
    opened = Terminal([*launch, *CHAT[:-1], "400", "--load", str(tiny_chat_dir), "--stats",
                       "--tensor-model-parallel-size", "2"], controls=True)  # fmt: skip
    try:
        opened.wait_for("You >> ", seconds=400)
        opened.type("tell me a long story\n")
        opened.wait_for("MindSpeed-LLM:")
        opened.type("\x03")
        opened.wait_for("[stopped]")
        opened.wait_for("You >> ", count=2)
        time.sleep(1.5)  # two within a second end the run
        opened.type("/set max-new-tokens 5\n")
        opened.wait_for("You >> ", count=3)
        opened.type("and then?\n")
        opened.wait_for("new 5", seconds=120)
        opened.wait_for("You >> ", count=4)
        opened.type("q\n")
        assert opened.process.wait(120) == 0
        assert b"Traceback" not in opened.seen
    finally:
        if opened.process.poll() is None:
            os.killpg(opened.process.pid, signal.SIGKILL)
            opened.process.wait()
        os.close(opened.fd)


FLOWERS = (
    "My sister's birthday is tomorrow and I need a birthday bouquet.",
    "She likes pink roses. The color is pink.",
    "Here I go again. Remember why I came to buy flowers yesterday?",
)


def test_the_guides_dialogue_in_a_terminal(tiny_chat_dir: Path, tmp_path: Path) -> None:
    """Every turn goes on from the ids before it; lines are kept for their owner alone."""
    opened = Terminal(
        [*CHAT, "--load", str(tiny_chat_dir), "--stats"], XDG_STATE_HOME=str(tmp_path)
    )
    try:
        for count, line in enumerate(FLOWERS, 1):
            opened.wait_for("You >> ", count=count)
            opened.type(line + "\n")
            opened.wait_for("ended by", count=count)
        opened.wait_for("You >> ", count=4)
        opened.type("/undo\n")
        opened.wait_for("taken back: Here I go again.")
        opened.wait_for("You >> ", count=5)
        opened.type("q\n")
        assert opened.process.wait(60) == 0
    finally:
        if opened.process.poll() is None:
            opened.process.kill()
            opened.process.wait()
        os.close(opened.fd)
    text = opened.seen.decode(errors="replace")
    assert text.count("MindSpeed-LLM:") == 3
    counts = re.findall(r"prompt (\d+) tokens \((\d+) cached\), new (\d+)", text)
    (one, none, new), (two, some, _), (_, most, _) = [tuple(map(int, row)) for row in counts]
    assert none == 0 and some == one + new - 1 and most > two
    history = tmp_path / "mindspeed-llm" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "birthday bouquet" in history.read_text()


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
    assert [path.name for path in output.parent.iterdir()] == ["replies.jsonl"]


@pytest.mark.parametrize(
    "flags,message",
    [(["--task", "chat"], "needs the chat template"),
     (["--task", "beam_search"], "beam search is not offered"),
     (["--task", "chat", "--prompt-type", "chatml", "--num-layers", "9"], "--num-layers is 9"),
     (["--task", "chat", "--prompt-type", "gemma", "--seq-length", "9999"], "--seq-length 9999"),
     (["--task", "chat", "--prompt-type", "chatml", "--historyturns", "2"], "--history-turns"),
     (["--system", "x", "--prompt", "y"], "--system has no place"),
     (["--task", "chat", "--prompt-type", "chatml", "--max-new-tokens", "512"], "no room"),
     (["--prompt", "hi", "--spec", "x"], "--spec cannot be honoured"),
     (["--prompt", "hi", "--json", "--stats"], "--stats, --json: only --task chat"),
     (["--prompt", "hi", "--no-history-file"], "--no-history-file: only --task chat"),
     (["--prompt", "hi", "--logprobs", "1"], "--logprobs has no place"),
     (["--prompt", "hi", "--stop", ""], "--stop has an empty text"),
     (["--task", "chat", "--prompt-type", "chatml", "--script", "absent"], "--script absent"),
     (["--task", "chat", "--prompt-type", "chatml", "--session", "absent"], "absent: cannot be")],
)  # fmt: skip
def test_a_mistake_is_one_error(
    tiny_chat_dir: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mindspeed_llm.cli import inference, main

    assert main.run(inference.main, ["--load", str(tiny_chat_dir), *flags]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in captured.err
