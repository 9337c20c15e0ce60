"""Holds that a launched run fails with its rank's exit code and in one line."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys, signal, time
rank = int(os.environ.get("RANK", "0"))
what = sys.argv[1]
if what == "tell":
    print(json.dumps({"rank": rank, "world": os.environ.get("WORLD_SIZE"), "args": sys.argv[2:],
                      "threads": os.environ.get("OMP_NUM_THREADS"),
                      "parent": os.getppid()}), flush=True)
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
