"""Owns `mindspeed-llm launch`: torchrun whose failures read as one line, and whose Ctrl-C is the
program's to answer.

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
_INTERRUPTED = (130, -signal.SIGINT)  # how a process ends that Ctrl-C has ended


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
    """Hands Ctrl-C to the processes, which torchrun puts into sessions of their own, beyond the
    terminal's reach; torchrun itself would end them all. A chat stops its reply and goes on.

    A second Ctrl-C at once ends the run, for processes that hang. A torchrun without the flag
    --signals-to-handle keeps its own handler, and there the first one ends the run.
    """

    def __init__(self, settings: argparse.Namespace) -> None:
        self.last = -_AGAIN
        self.has_ended = False
        wanted = vars(settings).get("signals_to_handle", "").split(",")
        settings.signals_to_handle = ",".join(name for name in wanted if name != "SIGINT")
        signal.signal(signal.SIGINT, self._pass_on)

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        if self.has_ended:
            return  # torchrun is ending the processes and must not be disturbed
        children, now = _children(), time.monotonic()
        if not children or now - self.last < _AGAIN:
            self.has_ended = True
            raise SignalException("Ctrl-C", sigval=signal.SIGTERM)
        self.last = now
        for pid in children:
            try:
                if os.getpgid(pid) != os.getpgrp():  # else the terminal has told it already
                    os.kill(pid, signal.SIGINT)
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

    # What torchrun says of a failure in many lines, this module says in one.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    interrupts = _Interrupts(settings)
    try:
        with _terminal_kept():
            torchrun.run(settings)
    except ChildFailedError as err:
        if any(failure.exitcode in _INTERRUPTED for failure in err.failures.values()):
            return _stopped_by(signal.SIGINT)
        rank, failure = err.get_first_failure()
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
        return _stopped_by(signal.SIGINT if interrupts.has_ended else err.sigval)
    return 0


def _stopped_by(number: int) -> int:
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
