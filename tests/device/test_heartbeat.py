"""Real processes that are killed or stopped in the middle of a collective are named by the others,
who leave."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from mindspeed_llm.device.heartbeat import LOST, Heartbeat

PROGRAM = """
import sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from mindspeed_llm.device.heartbeat import Heartbeat

what = sys.argv[1]
with Heartbeat.from_environment(limit=float(sys.argv[2])):
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    rank, one = dist.get_rank(), torch.ones(1)
    print("ready", flush=True)
    for step in range(10**6):
        if what == "short" and step == 3 or what == "error" and rank == 1 and step == 3:
            break
        dist.all_reduce(one.fill_(1.0))
        time.sleep(0.05)
    if what == "error":
        raise ValueError("a mistake of rank 1")
    if what == "short" and rank == 1:
        time.sleep(7)  # the other one has left long ago, which is no loss
"""


@pytest.fixture
def start(tmp_path):
    """`start(what, limit, world)` -> processes; the store is this process's, as torchrun has it."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    started, stores = [], []

    def run(what, limit, world=2):
        store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
        stores.append(store)
        for rank in range(world):
            env = {
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            log = (tmp_path / f"{rank}.log").open("wb")
            started.append(subprocess.Popen(
                [sys.executable, "-W", "ignore", str(script), what, str(limit)],
                env=env, stdout=log, stderr=subprocess.STDOUT,
                # A shell starts what it puts into the background with SIGINT ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)))  # fmt: skip
        return started

    yield run
    for process in started:
        process.kill()
        process.wait()


def said(tmp_path, rank):
    return (tmp_path / f"{rank}.log").read_text()


def wait_until_ready(tmp_path, world=2):
    end = time.monotonic() + 120
    while not all("ready" in said(tmp_path, rank) for rank in range(world)):
        assert time.monotonic() < end, [said(tmp_path, rank) for rank in range(world)]
        time.sleep(0.05)


def test_a_killed_rank_is_named_by_those_that_wait_for_it(start, tmp_path):
    first, second = start("long", 60)  # far beyond the wait below: its end is seen, not its silence
    wait_until_ready(tmp_path)
    time.sleep(2.5)  # its first beat
    second.kill()
    second.wait()
    assert first.wait(30) == LOST
    assert f"rank 1 (process {second.pid} on " in said(tmp_path, 0)
    assert "is gone" in said(tmp_path, 0) and "Traceback" not in said(tmp_path, 0)


def test_a_stopped_rank_is_named_and_ended(start, tmp_path):
    processes = start("long", 4, 3)
    wait_until_ready(tmp_path, 3)
    time.sleep(2.5)
    processes[1].send_signal(signal.SIGSTOP)
    assert processes[0].wait(40) == LOST and processes[2].wait(40) == LOST
    assert processes[1].wait(10) == -signal.SIGKILL
    whole = said(tmp_path, 0) + said(tmp_path, 2)
    assert whole.count(f"rank 1 (process {processes[1].pid} on ") == 1
    assert "was silent for 4 s" in whole and "Traceback" not in whole


def test_an_interrupted_rank_takes_the_others_along_with_its_code(start, tmp_path):
    first, second = start("long", 60)
    wait_until_ready(tmp_path)
    time.sleep(2.5)  # its first beat
    second.send_signal(signal.SIGINT)
    assert first.wait(60) == 130 and second.wait(60) in (130, -signal.SIGINT)
    assert "the job ends" not in said(tmp_path, 0)


@pytest.mark.slow
def test_an_error_of_one_rank_ends_the_others_and_speaks_for_itself(start, tmp_path):
    first, second = start("error", 60)
    assert second.wait(60) == 1 and first.wait(60) == LOST
    assert "ValueError: a mistake of rank 1" in said(tmp_path, 1)
    assert "the job ends" not in said(tmp_path, 0) + said(tmp_path, 1)


def test_who_leaves_at_the_end_is_not_lost(start, tmp_path):
    assert [process.wait(90) for process in start("short", 4)] == [0, 0]
    assert "error" not in said(tmp_path, 0) + said(tmp_path, 1)


@pytest.mark.slow
def test_a_store_that_is_gone_ends_the_job(start, tmp_path, request):
    script = (
        "import torch.distributed as d, time; s = d.TCPStore('127.0.0.1', 0, 2, is_master=True,"
    )
    script += " wait_for_workers=False); print(s.port, flush=True); time.sleep(300)"
    keeper = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    request.addfinalizer(keeper.kill)
    port = int(keeper.stdout.readline())
    code = (
        "import time\nfrom mindspeed_llm.device.heartbeat import Heartbeat\n"
        f"with Heartbeat(rank=0, world_size=2, address='127.0.0.1', port={port}, limit=60) as h:\n"
        "    while h._store is None: time.sleep(0.05)\n"
        "    print('ready', flush=True); time.sleep(300)"
    )
    watch = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    request.addfinalizer(watch.kill)
    assert watch.stdout.readline() == "ready\n"
    keeper.kill()
    assert watch.wait(60) == LOST
    assert f"the store at 127.0.0.1:{port}" in watch.stderr.read()


def test_a_process_alone_has_nobody_to_watch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Heartbeat.from_environment(20.0) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Heartbeat.from_environment(0.0) is None
