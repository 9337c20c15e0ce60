"""Owns the watch of a job's processes over each other: one that is gone or stopped is named, and
the job ends, instead of waiting in a collective for long. Knows no collective and no training.

Each process says every two seconds, through torchrun's store, that it lives, and looks at the next
rank. One of this machine whose process is gone, and any that was silent for as many looks as the
limit has room for, is named in the store; everybody reads that and leaves. Looks are counted, not
seconds: a job that was suspended as a whole and goes on has missed none. A second thread sees when
the store itself no longer answers.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from mindspeed_llm.logging import get_logger

LOST = 4
"""Exit code of a process that leaves because another one of the job is gone or silent."""
_INTERRUPTED = 130  # of one that leaves because another one has heard Ctrl-C

_EVERY = 2.0  # seconds between two beats
_REFUSED = 3  # failed calls in a row after which the store is taken for gone
_LEFT = b"left"
_log = get_logger(__name__)


class Heartbeat:
    """The watch of this process; a context manager.

    Args:
        rank, world_size, address, port: as torchrun gives them (see `from_environment`).
        limit: seconds of silence after which a process is given up.
        run: tells apart the runs that one store serves, one after the other.
    """

    def __init__(
        self, *, rank: int, world_size: int, address: str, port: int, limit: float, run: str = "0"
    ) -> None:
        self._rank, self._world, self._where = rank, world_size, (address, port)
        self._limit, self._prefix = limit, f"mindspeed_llm/heartbeat/{run}"
        self._store: dist.Store | None = None
        self._ended = threading.Event()
        self._waits = 0  # looks of the second thread since the store answered last
        self._watched: tuple[int, bytes] = (rank, b"")  # rank and what it said last
        self._silent = 0  # looks since it said something new
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._beat, "heartbeat"), (self._guard, "heartbeat guard"))
        ]

    @classmethod
    def from_environment(cls, limit: float) -> Heartbeat | None:
        """The watch of a process that torchrun started; None if it is alone or `limit` is 0."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or limit == 0:
            return None
        return cls(
            rank=int(os.environ["RANK"]),
            world_size=world,
            address=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            limit=limit,
            run=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )

    def __enter__(self) -> Heartbeat:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say that this process leaves, at the end or because of an error that it will print.

        A collective that failed is often the consequence of another process's end: then the
        process ends in here, when that one is named.
        """
        if _of_a_collective(error):
            self._ended.wait(self._limit + 3 * _EVERY)
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * _EVERY)
        if self._store is None:
            return
        try:
            self._store.set(f"beat/{self._rank}", _LEFT)
            if isinstance(error, KeyboardInterrupt):
                # All hear Ctrl-C, but one that waits in a collective answers too late.
                self._name(self._store, self._rank, "was interrupted", said=True, code=_INTERRUPTED)
            elif error is not None:
                self._name(self._store, self._rank, "stopped because of an error", said=True)
        except RuntimeError as problem:  # the store's own process left first
            _log.debug("no farewell: %s", problem)

    def _beat(self) -> None:
        store = dist.PrefixStore(
            self._prefix,
            dist.TCPStore(
                *self._where, is_master=False, wait_for_workers=False,
                timeout=datetime.timedelta(minutes=10),
            ),
        )  # fmt: skip
        store.set(f"who/{self._rank}", json.dumps(_who()))
        self._store = store
        count = failed = 0
        while not self._ended.is_set():
            count += 1
            try:
                store.set(f"beat/{self._rank}", str(count))
                if store.check(["lost"]):
                    self._leave(json.loads(store.get("lost")))
                self._look(store)
                self._waits = failed = 0
            except RuntimeError as problem:
                failed += 1
                if failed == _REFUSED:
                    self._leave_without_store(str(problem))
            self._ended.wait(_EVERY)

    def _guard(self) -> None:
        while not self._ended.wait(_EVERY):
            self._waits += self._store is not None
            if self._waits * _EVERY > self._limit + _EVERY:
                self._leave_without_store("no answer")

    def _look(self, store: dist.Store) -> None:
        """Look at the next rank that has begun and has not left."""
        for step in range(1, self._world):
            rank = (self._rank + step) % self._world
            said = store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b""
            if said == _LEFT:
                continue
            if not said:
                return
            self._silent = self._silent + 1 if (rank, said) == self._watched else 0
            self._watched = rank, said
            who = json.loads(store.get(f"who/{rank}"))
            if _is_gone(who) and store.get(f"beat/{rank}") != _LEFT:
                self._name(store, rank, "is gone (killed; often: out of memory)")
            elif self._silent * _EVERY >= self._limit:
                self._name(store, rank, f"was silent for {self._limit:.0f} s: stopped, or hung")
            return

    def _name(
        self, store: dist.Store, rank: int, why: str, *, said: bool = False, code: int = LOST
    ) -> None:
        """Name the lost rank, unless one was named before; `said`: it speaks for itself. The others
        leave with exit code `code`."""
        who = json.loads(store.get(f"who/{rank}"))
        text = f"rank {rank} (process {who['pid']} on {who['host']}) {why}; the job ends"
        lost = json.dumps({"rank": rank, "who": who, "text": text, "code": code})
        first = store.compare_set("lost", "", lost).decode() == lost
        if first and not said:
            _log.error("%s", text)
            threading.Event().wait(1.5 * _EVERY)  # the others must read it from a store of ours

    def _leave(self, lost: dict[str, Any]) -> None:
        """End this process, and one of this machine that is stopped: nobody else can."""
        if lost["rank"] == self._rank:
            _log.error("%s", lost["text"])
        elif "silent" in lost["text"] and not _is_elsewhere(lost["who"]):
            if not _is_gone(lost["who"]):
                os.kill(lost["who"]["pid"], signal.SIGKILL)
        self._end(lost["code"])

    def _leave_without_store(self, why: str) -> None:
        if self._ended.is_set():
            return
        host, port = self._where
        _log.error(
            "rank %d: the store at %s:%d, which the launcher or rank 0 keeps, does not answer "
            "(%s); the job ends", self._rank, host, port, why.splitlines()[0][:120],
        )  # fmt: skip
        self._end()

    def _end(self, code: int = LOST) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the main thread may wait in a collective for ever


def _of_a_collective(error: BaseException | None) -> bool:
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "connection", "nccl", "hccl")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _who() -> dict[str, Any]:
    """This process, so that others of the same machine can tell whether it still is."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "space": _space(), "start": _start(pid)}


def _space() -> str:
    """Where process numbers mean the same: a container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When the process began, in the kernel's ticks; "" if it has ended or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_elsewhere(who: dict[str, Any]) -> bool:
    return (who["host"], who["space"]) != (socket.gethostname(), _space()) or not who["start"]


def _is_gone(who: dict[str, Any]) -> bool:
    """True only where it can be known: on this machine."""
    return not _is_elsewhere(who) and _start(who["pid"]) != who["start"]
