"""Owns `mindspeed-llm launch`: torchrun whose failures read as one line, and whose Ctrl-C, SIGTERM
and SIGUSR1 are the program's to answer.

It takes torchrun's flags and knows nothing of the program it starts. One process on one machine
needs no torchrun: the program replaces this process.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)
_AGAIN = 1.0  # seconds within which a second Ctrl-C means: now
# How processes end that a signal has ended, or that have left because of one.
_ENDED_BY = {
    code: number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    for code in (128 + number, -number)
}


def main(argv: Sequence[str]) -> int:
    """Start the processes, wait, return the exit code of the first that failed."""
    # Late: torch takes seconds to import.
    from torch.distributed import run as torchrun

    settings = torchrun.parse_args(list(argv))
    _share_cores(settings)
    if _is_single(settings):
        command = _command(settings)
        os.execv(command[0], command)
    return _run(settings)


def _is_single(settings: argparse.Namespace) -> bool:
    return str(settings.nproc_per_node) == "1" and str(settings.nnodes) in ("1", "1:1")


def _command(settings: argparse.Namespace) -> list[str]:
    program = [settings.training_script, *settings.training_script_args]
    if settings.no_python:
        return program
    return [sys.executable, "-u", *(["-m"] if settings.module else []), *program]


def _share_cores(settings: argparse.Namespace) -> None:
    """Give each process its share of the cores; torchrun alone would give each a single one."""
    if "OMP_NUM_THREADS" in os.environ or not str(settings.nproc_per_node).isdecimal():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ["OMP_NUM_THREADS"] = str(max(1, (cores or 1) // int(settings.nproc_per_node)))


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """Leave the terminal as it was: a process that is ended at a line editor's prompt does not."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # late: not on every system

    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Interrupts:
    """Hands Ctrl-C, SIGTERM and SIGUSR1 to the processes, which torchrun puts into sessions of
    their own, beyond the terminal's reach; torchrun itself would end them all. A chat stops its
    reply and goes on, training saves and leaves.

    A second Ctrl-C at once, or a second SIGTERM, ends the run, for processes that hang. A torchrun
    without the flag --signals-to-handle keeps its own handlers, and there the first one does.
    """

    def __init__(self, settings: argparse.Namespace) -> None:
        self.last = -_AGAIN
        self.has_ended = False
        self.told_to_end = False
        wanted = vars(settings).get("signals_to_handle", "").split(",")
        ours = ("SIGINT", "SIGTERM", "SIGUSR1")
        settings.signals_to_handle = ",".join(name for name in wanted if name not in ours)
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGUSR1, self._tell)

    def _tell(self, number: int, _frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        if self.has_ended:
            return
        children = _children()
        if number == signal.SIGTERM and (self.told_to_end or not children):
            self.has_ended = True
            raise SignalException("SIGTERM", sigval=signal.SIGTERM)
        self.told_to_end |= number == signal.SIGTERM
        _send(number, children)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        if self.has_ended:
            return  # torchrun is ending the processes and must not be disturbed
        children, now = _children(), time.monotonic()
        if not children or now - self.last < _AGAIN:
            self.has_ended = True
            raise SignalException("Ctrl-C", sigval=signal.SIGTERM)
        self.last = now
        _send(signal.SIGINT, children)


def _send(number: int, children: Sequence[int]) -> None:
    for pid in children:
        try:
            # Of the same group, the terminal has told it already of Ctrl-C.
            if number != signal.SIGINT or os.getpgid(pid) != os.getpgrp():
                os.kill(pid, number)
        except ProcessLookupError:
            continue  # it has just ended by itself


def _children() -> list[int]:
    """Processes that this one has started; none where the system has no /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = file.read_text(errors="replace").rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue  # it ended while the list was read
        if int(parent) == os.getpid():
            found.append(int(file.parent.name))
    return found


def _run(settings: argparse.Namespace) -> int:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from mindspeed_llm.device.heartbeat import LOST  # late: it imports torch

    # What torchrun says of a failure in many lines, this module says in one.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    interrupts = _Interrupts(settings)
    try:
        with _terminal_kept():
            torchrun.run(settings)
    except ChildFailedError as err:
        codes = {failure.exitcode for failure in err.failures.values()}
        asked = codes & (set(_ENDED_BY) - {-signal.SIGTERM})  # torchrun sends it after a failure
        if asked:
            return _stopped_by(_ENDED_BY[max(asked)])
        if interrupts.told_to_end and -signal.SIGTERM in codes:
            return _stopped_by(signal.SIGTERM)
        rank, failure = err.get_first_failure()
        if failure.exitcode == LOST:
            print(f"error: {settings.training_script}: a rank was lost, see above, and the run was "
                  "stopped", file=sys.stderr)  # fmt: skip
            return LOST
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        how = f"left with exit code {failure.exitcode}"
        if failure.exitcode < 0:
            how = f"was ended by {failure.signal_name()}"
            if failure.exitcode == -signal.SIGKILL:
                how += " (often: out of memory)"
        log = f"in {settings.log_dir}" if settings.log_dir else "above"
        print(
            f"error: {settings.training_script}: rank {rank} (process {failure.pid}) {how}, and "
            f"the run of {settings.nnodes} x {settings.nproc_per_node} processes was stopped; "
            f"what it said stands {log}",
            file=sys.stderr,
        )
        return code
    except SignalException as err:
        by_hand = interrupts.has_ended and not interrupts.told_to_end
        return _stopped_by(signal.SIGINT if by_hand else err.sigval)
    return 0


def _stopped_by(number: int) -> int:
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
