"""Runs that are killed with SIGKILL at random moments and continued, with dropout, packed rows, a
blend and more than three epochs, end with the bits of a run that never stopped."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAST = 24
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "DEVICE": "cpu", "OMP_NUM_THREADS": "1",
}  # fmt: skip
LAYOUTS = {
    "alone": (1, []),
    "tensor and sequence parallel": (
        2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
    ),
    "pipeline": (2, ["--pipeline-model-parallel-size", "2"]),
    "sharded optimizer": (2, ["--use-distributed-optimizer"]),
    "bf16": (1, ["--bf16"]),
}  # fmt: skip


@pytest.fixture
def command(tmp_path, tiny_chat_model, tiny_sft_data, tiny_tokenizer_dir):
    """`command(save, ranks, *flags)`: 24 iterations of 8 packed rows of a blend, five epochs."""
    parts = [
        tiny_sft_data(tmp_path / name, tiny_tokenizer_dir, capacity=48, rows=rows, seed=seed)
        for name, rows, seed in (("a", 60, 1), ("b", 30, 2))
    ]
    model = tiny_chat_model("llama")

    def make(save, ranks, *more):
        how = ["-m", "mindspeed_llm.cli.main", "launch", "--standalone",
               f"--nproc-per-node={ranks}"] if ranks > 1 else ["-W", "ignore"]  # fmt: skip
        return [
            sys.executable, *how, str(ROOT / "posttrain_gpt.py"), "--load", str(model),
            "--data-path", "0.7", str(parts[0]), "0.3", str(parts[1]), "--seq-length", "48",
            "--train-iters", str(LAST), "--global-batch-size", "8", "--lr", "1e-3",
            "--lr-decay-style", "cosine", "--lr-warmup-iters", "3", "--hidden-dropout", "0.1",
            "--attention-dropout", "0.1", "--save", str(save), "--save-interval", "5",
            "--keep-last", "2", *more,
        ]  # fmt: skip

    return make


def kill_at(command, log, iteration, cwd):
    """Start `command` and SIGKILL all its processes when `log` has so many lines; whether it was
    still running."""
    process = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        if log.exists() and log.read_bytes().count(b"\n") >= iteration:
            break
        time.sleep(0.002)
    pids = [process.pid]
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(file.read_text(errors="replace").rpartition(")")[2].split()[1]) == process.pid:
                pids.append(int(file.parent.name))
        except OSError:
            continue
    for pid in pids:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
    return process.wait() == -9


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_random_steps_and_continued(command, tmp_path, layout, told, bits):
    ranks, flags = LAYOUTS[layout]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(whole, ranks, *flags), cwd=tmp_path, env=ENVIRONMENT, check=True,
                   capture_output=True, timeout=300)  # fmt: skip
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(6, LAST), 2))
    print("killed at", moments, "of seed", seed)  # pytest shows it if the test fails
    load = []
    for moment in moments:
        go_on = [*command(cut, ranks, *flags), *load]
        assert kill_at(go_on, cut / "logs" / "train.jsonl", moment, tmp_path)
        load = ["--load", str(cut)]
    subprocess.run([*command(cut, ranks, *flags), *load], cwd=tmp_path, env=ENVIRONMENT, check=True,
                   capture_output=True, timeout=300)  # fmt: skip
    assert told(cut) == told(whole)
    assert bits(cut, LAST) == bits(whole, LAST)
    assert len(list(cut.glob("iter_*"))) <= 3 and not list(cut.glob("*.tmp-*"))


@pytest.mark.slow
def test_parts_of_a_state_are_left_out_as_in_megatron(command, tmp_path, told):
    save = tmp_path / "first"
    subprocess.run([*command(save, 1), "--exit-interval", "5"], cwd=tmp_path, env=ENVIRONMENT,
                   check=True, capture_output=True, timeout=300)  # fmt: skip

    def go_on(name, *flags):
        out = tmp_path / name
        done = subprocess.run(
            [*command(out, 1), "--load", str(save), *flags, "--exit-interval", "7"], cwd=tmp_path,
            env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return told(out)

    exact, blank = go_on("exact"), go_on("blank", "--no-load-optim")
    other, anew = go_on("other", "--no-load-rng"), go_on("anew", "--finetune")
    assert [row[0] for row in exact] == [row[0] for row in blank] == [6, 7]
    assert [row[4] for row in exact] == [row[4] for row in blank] == [48, 56]
    assert blank[0][1] == exact[0][1] and blank[1][1] != exact[1][1]  # same weights, other steps
    assert blank[0][2] == 0.0 < exact[0][2]  # the warm-up again
    assert other[0][1] != exact[0][1] and other[0][2] == exact[0][2]  # another dropout
    assert [row[0] for row in anew][:1] == [1] and anew[0][4] == 8
