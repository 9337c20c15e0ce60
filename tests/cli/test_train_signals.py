"""Real signals at real process trees: all ranks save and leave with one exit code, a run goes on
where it left, and a rank that is killed or stopped ends the job, named."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "DEVICE": "cpu", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def children_of(pid):
    """The ranks that a launcher has started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(file.read_text(errors="replace").rpartition(")")[2].split()[1]) == pid:
                found.append(int(file.parent.name))
    return sorted(found)


@pytest.fixture
def run(tmp_path, tiny_chat_model, tiny_sft_data, tiny_tokenizer_dir):
    """`run(ranks, *flags)` -> a started training and its log file; it would take very long."""
    prefix, model = tiny_sft_data(tmp_path / "rows", tiny_tokenizer_dir), tiny_chat_model("llama")
    started = []

    def start(ranks, *flags):
        log = tmp_path / f"{len(started)}.log"
        how = ["-m", "mindspeed_llm.cli.main", "launch", "--standalone",
               f"--nproc-per-node={ranks}"] if ranks > 1 else ["-W", "ignore"]  # fmt: skip
        command = [
            sys.executable, *how, str(ROOT / "posttrain_gpt.py"), "--load", str(model),
            "--data-path", str(prefix), "--seq-length", "32", "--train-iters", "100000",
            "--global-batch-size", "4", "--lr", "1e-4", "--lr-decay-style", "constant",
            "--variable-seq-lengths", "--save", str(tmp_path / "out"), *flags,
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=log.open("wb"),
                                   stderr=subprocess.STDOUT)  # fmt: skip
        started.append(process)
        return process, log

    yield start
    for process in started:
        for pid in (*children_of(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_for(process, log, text):
    end = time.monotonic() + 240
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)


def tracked(tmp_path):
    return int((tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text())


def test_sigterm_at_the_launcher_saves_and_the_run_goes_on(run, tmp_path):
    process, log = run(2)
    wait_for(process, log, "iteration 3/100000")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    said = log.read_text()
    left = tracked(tmp_path)
    assert f"iteration {left}: SIGTERM; the run leaves" in said and "stopped by SIGTERM" in said
    assert "Traceback" not in said and "error: " not in said and f"saved {tmp_path}" in said
    # goes on, and one rank alone hears SIGUSR1
    process, log = run(2, "--load", str(tmp_path / "out"))
    wait_for(process, log, f"iteration {left + 2}/100000")
    os.kill(children_of(process.pid)[-1], signal.SIGUSR1)
    assert process.wait(120) == 128 + signal.SIGUSR1, log.read_text()[-3000:]
    assert f"iteration {tracked(tmp_path)}: SIGUSR1; the run leaves" in log.read_text()
    assert tracked(tmp_path) > left and f"iteration {left}/" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [("--tensor-model-parallel-size", "2"), ("--use-distributed-optimizer",)]
)
def test_ctrl_c_ends_all_ranks_with_its_own_code(run, layout):
    process, log = run(2, *layout)
    wait_for(process, log, "iteration 3/100000")
    time.sleep(3)  # the first beats
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    said = log.read_text()
    assert "stopped by SIGINT" in said and "a rank was lost" not in said
    assert "Warning" not in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_lost_rank_ends_the_job_and_is_named(run, tmp_path, how):
    process, log = run(2)
    wait_for(process, log, "iteration 3/100000")
    time.sleep(3)  # its first beat, on a busy machine
    ranks = children_of(process.pid)
    lost = next(pid for pid in ranks if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(lost, signal.Signals[how])
    code = process.wait(60)
    said = log.read_text()
    assert code == (137 if how == "SIGKILL" and "was ended by SIGKILL" in said else code) != 0
    assert f"rank 1 (process {lost}" in said and "Traceback" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.slow
def test_a_process_alone_answers_too(run, tmp_path):
    process, log = run(1, "--exit-duration-in-mins", "600")
    wait_for(process, log, "iteration 2/100000")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 138
    assert tracked(tmp_path) >= 2
