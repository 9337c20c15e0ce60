"""Owns bringing up a model for a command of the terminal: patches, device, ranks, Ctrl-C. Rank 0
does the command's work, the others follow it; it knows nothing of that work."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING

from mindspeed_llm import logging as log
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.inference import LoadSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import RuntimeSettings

if TYPE_CHECKING:
    from mindspeed_llm.inference.engine import Engine
    from mindspeed_llm.inference.load import Parts

_GONE = 30.0  # seconds after Ctrl-C within which a broken connection is rank 0 having left


def lead(
    load: LoadSettings,
    runtime: RuntimeSettings,
    parallel: ParallelConfig,
    architecture: ArchitectureFlags,
    work: Callable[[Parts, Engine], None],
    options: Callable[[Parts], Mapping[str, int | None]] | None = None,
) -> int:
    """Load the model on all ranks and do `work` on rank 0; returns the exit code.

    `options` gives the engine's, where they are not the usual ones.

    However `work` ends, the other ranks are let go.
    """
    # Late, in this order: wrong flags answer at once, and megatron-core is patched for the chosen
    # device before anything imports it.
    from mindspeed_llm.device.detect import detect
    from mindspeed_llm.patches import engine as patches

    device = detect(runtime.device)
    runtime.check_device(device.kind, device.backend)
    patches.apply(device)

    from megatron.core import parallel_state

    from mindspeed_llm.device.runtime import init_distributed, local_rank, shutdown_distributed
    from mindspeed_llm.inference.load import read_parts, start_engine

    # The first rank checks before it joins the others: a user's mistake is said once.
    first = log.rank() == 0
    parts = read_parts(load, parallel, architecture) if first else None
    init_distributed(device, runtime.distributed_timeout_minutes)
    if parts is None:
        parts = read_parts(load, parallel, architecture)
    log.get_logger(__name__).info("device: %s (%s)", device.kind, device.reason)
    own = {} if options is None else options(parts)
    engine = start_engine(load, parts, parallel, device.torch_device(local_rank()), **own)
    try:
        if first:
            _work(parts, engine, work)
        else:
            _follow(engine)
    finally:
        parallel_state.destroy_model_parallel()
        shutdown_distributed()
    return 0


def _work(parts: Parts, engine: Engine, work: Callable[[Parts, Engine], None]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        work(parts, engine)
    finally:
        engine.close()


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Ctrl-C on rank 0 of several. In the middle of a step the others wait in a collective and can
    be told nothing, so this process leaves and whoever started it ends them."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "mindspeed_llm.inference.engine":
            sys.stdout.flush()
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _follow(engine: Engine) -> None:
    # Ctrl-C reaches every process; what it means is decided by rank 0.
    pressed: list[float] = []
    signal.signal(signal.SIGINT, lambda _number, _frame: pressed.append(time.monotonic()))
    try:
        engine.follow()
    except RuntimeError:
        if not pressed or time.monotonic() - pressed[-1] > _GONE:
            raise
        os._exit(130)  # rank 0 has left in the middle of a step, as the user wished
