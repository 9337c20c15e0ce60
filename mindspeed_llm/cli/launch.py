"""Owns `mindspeed-llm launch`: torchrun whose failures read as one line.

It takes torchrun's flags and knows nothing of the program it starts. One process on one machine
needs no torchrun: the program replaces this process.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)


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


def _run(settings: argparse.Namespace) -> int:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What torchrun says of a failure in many lines, this module says in one.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        torchrun.run(settings)
    except ChildFailedError as err:
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
        print(f"stopped by {signal.Signals(err.sigval).name}", file=sys.stderr)
        return 128 + err.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
