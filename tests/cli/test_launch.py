"""Holds that a launched run fails with its rank's exit code, in one line, and what Ctrl-C does."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import json, os, sys, signal, time
rank = int(os.environ.get("RANK", "0"))
what = sys.argv[1]
if what == "tell":
    said = {"rank": rank, "world": os.environ.get("WORLD_SIZE"), "args": sys.argv[2:],
            "threads": os.environ.get("OMP_NUM_THREADS"), "parent": os.getppid()}
    os.write(1, (json.dumps(said) + chr(10)).encode())  # at once, or two ranks share a line
elif rank == 1 or what == "alone":
    print("error: no such file", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if what == "kill" else sys.exit(int(sys.argv[2]))
else:
    time.sleep(300)
"""


@pytest.fixture
def launch(tmp_path):
    """Run the program under `launch`; its completed process."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(processes, *args, **environment):
        env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment
        flags = [f"--nproc-per-node={processes}", "--nnodes=1", "--standalone"]
        return subprocess.run(
            [sys.executable, "-m", "mindspeed_llm.cli.main", "launch", *flags,
             str(tmp_path / "program.py"), *args],
            env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def told(done):
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_one_process_runs_without_torchrun(launch):
    done = launch(1, "tell", "--lr", "1e-5")
    (answer,) = told(done)
    assert done.returncode == 0, done.stderr
    assert answer["world"] is None
    assert answer["parent"] == os.getpid()  # it took the launcher's place
    assert answer["args"] == ["--lr", "1e-5"]


def test_one_process_keeps_its_exit_code(launch):
    done = launch(1, "alone", "3")
    assert (done.returncode, done.stderr) == (3, "error: no such file\n")


def test_two_processes_get_ranks_and_a_share_of_the_cores(launch):
    done = launch(2, "tell")
    assert done.returncode == 0, done.stderr
    assert sorted(answer["rank"] for answer in told(done)) == [0, 1]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {answer["threads"] for answer in told(done)} == {str(share)}
    assert {answer["threads"] for answer in told(launch(2, "tell", OMP_NUM_THREADS="3"))} == {"3"}


@pytest.mark.parametrize(
    ("args", "code", "how"),
    [(("fail", "7"), 7, "left with exit code 7"), (("kill",), 137, "was ended by SIGKILL")],
)
def test_a_failed_rank_is_named_in_one_line(launch, args, code, how):
    done = launch(2, *args)
    assert done.returncode == code
    said = done.stderr.splitlines()
    assert said[0] == "error: no such file"
    assert "rank 1" in said[-1] and how in said[-1]
    assert len(said) == 2, done.stderr
    assert "Traceback" not in done.stderr


TALKER = """
import os, signal, sys, time
pressed = 0


def press(number, frame):
    global pressed
    pressed += 1
    print(f"rank {os.environ['RANK']} pressed {pressed}", flush=True)
    if pressed == 2 and "leave" in sys.argv and os.environ["RANK"] == "0":
        sys.exit(130)


signal.signal(signal.SIGINT, press)
print("ready " + str(os.getpid()), flush=True)
while True:
    time.sleep(0.05)
"""


class Terminal:
    """A command with a pseudo-terminal of its own, as a user has it."""

    def __init__(self, arguments):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-m", "mindspeed_llm.cli.main", *arguments])

    def wait_for(self, text, count=1):
        end = time.monotonic() + 120
        while self.seen.count(text) < count:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")

    def press_ctrl_c(self):
        os.write(self.fd, b"\x03")

    def leave(self):
        """Read to the end of the output; the exit code."""
        with contextlib.suppress(OSError):  # what Linux says at the end of a pseudo-terminal
            while select.select([self.fd], [], [], 60)[0] and (read := os.read(self.fd, 4096)):
                self.seen += read.decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def talk(tmp_path):
    (tmp_path / "talker.py").write_text(TALKER)
    opened = []

    def start(*args):
        opened.append(Terminal(["launch", "--standalone", "--nproc-per-node=2", *args]))
        return opened[-1]

    yield start
    for terminal in opened:
        with contextlib.suppress(ProcessLookupError):
            os.kill(terminal.pid, signal.SIGKILL)
        os.close(terminal.fd)


def has_ended(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_ctrl_c_is_the_programs_to_answer(talk, tmp_path):
    terminal = talk(str(tmp_path / "talker.py"), "leave")
    terminal.wait_for("ready", 2)
    terminal.press_ctrl_c()
    terminal.wait_for("pressed 1", 2)  # both, once, and they go on
    time.sleep(1.2)  # a later one is a new one
    terminal.press_ctrl_c()
    assert terminal.leave() == 130
    assert "stopped by SIGINT" in terminal.seen and "Traceback" not in terminal.seen
    assert terminal.seen.count("rank 0 pressed") == 2
    assert all(has_ended(int(pid)) for pid in re.findall(r"ready (\d+)", terminal.seen))


def test_two_ctrl_c_at_once_end_programs_that_hang(talk, tmp_path):
    terminal = talk(str(tmp_path / "talker.py"))
    terminal.wait_for("ready", 2)
    terminal.press_ctrl_c()
    terminal.wait_for("pressed 1", 2)
    terminal.press_ctrl_c()
    assert terminal.leave() == 130
    assert "stopped by SIGINT" in terminal.seen and "Traceback" not in terminal.seen
    assert all(has_ended(int(pid)) for pid in re.findall(r"ready (\d+)", terminal.seen))


def test_a_chat_of_two_ranks_stops_a_reply_and_leaves_at_the_prompt(
    talk, tiny_chat_dir, monkeypatch
):
    for name, value in {"DEVICE": "cpu", "OMP_NUM_THREADS": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    script = Path(__file__).parents[2] / "inference.py"
    terminal = talk(str(script), "--task", "chat", "--prompt-type", "chatml", "--load",
                    str(tiny_chat_dir), "--max-new-tokens", "400",
                    "--tensor-model-parallel-size", "2")  # fmt: skip
    terminal.wait_for("You >> ")
    os.write(terminal.fd, b"tell me a long story\n")
    terminal.wait_for("MindSpeed-LLM:")
    terminal.press_ctrl_c()
    terminal.wait_for("[stopped]")
    terminal.wait_for("You >> ", 2)
    time.sleep(1.2)
    terminal.press_ctrl_c()
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.seen and "error:" not in terminal.seen
