"""Owns the `train` command: flags -> settings, patches, process group, run. Knows nothing of what a
flag means: the settings check themselves, `training` does the work.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from mindspeed_llm import logging as log
from mindspeed_llm.cli.verify import checker
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.carried import ALWAYS, REFUSED
from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.inert import check_effect, flags_of, waiting
from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import (
    CheckpointSettings,
    ControlSettings,
    LogSettings,
    RuntimeSettings,
)
from mindspeed_llm.config.train import Settings, TrainConfig
from mindspeed_llm.config.train_data import TrainDataConfig
from mindspeed_llm.config.tuning import TuningSettings
from mindspeed_llm.errors import ConfigError


def read_settings(argv: Sequence[str]) -> tuple[Settings, ArchitectureFlags]:
    """Settings and statements about the model from a command line.

    Raises:
        ConfigError: an unknown, refused, malformed or contradictory flag, or one without effect.
    """
    train, data, optimizer, checkpoint, logs, runtime, control, *others = parse(
        argv,
        TrainConfig,
        TrainDataConfig,
        OptimizerSettings,
        CheckpointSettings,
        LogSettings,
        RuntimeSettings,
        ControlSettings,
        ParallelConfig,
        TuningSettings,
        ArchitectureFlags,
        prog="posttrain_gpt.py",
        description="Supervised fine-tuning on a prepared instruction data set.",
        always=ALWAYS,
        refused=REFUSED,
    )
    parallel, tuning, architecture = others
    settings = Settings(
        train=train,
        data=data,
        optimizer=optimizer,
        checkpoint=checkpoint,
        log=logs,
        runtime=runtime,
        control=control,
        parallel=parallel,
        tuning=tuning,
    )
    check_effect(settings, flags_of(argv))
    return settings, architecture


def main(argv: Sequence[str]) -> int:
    """Run `posttrain_gpt.py`; returns the exit code."""
    settings, architecture = read_settings(argv)
    log.configure()

    # Late, in this order: --help and wrong flags answer at once, and megatron-core is patched for
    # the chosen device before anything imports it.
    from mindspeed_llm.device.detect import detect
    from mindspeed_llm.kernels import dispatch
    from mindspeed_llm.patches import engine

    device = detect(settings.runtime.device)
    settings.runtime.check_device(device.kind, device.backend)
    engine.apply(device)
    if device.kind != "cuda":
        warnings.filterwarnings("ignore", message=".*variable CUDA_DEVICE_MAX_CONNECTIONS")
    dispatch.require_fused(settings.runtime.require_fused)

    from mindspeed_llm.device.heartbeat import Heartbeat
    from mindspeed_llm.device.runtime import init_distributed, local_rank, shutdown_distributed
    from mindspeed_llm.training.fit import with_fitted_data
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import train
    from mindspeed_llm.training.raw import with_prepared_data
    from mindspeed_llm.training.setup import prepare

    # May take long: before anybody waits in a collective.
    settings = with_fitted_data(with_prepared_data(settings))
    # The first rank checks before it joins the others: a user's mistake is said once.
    first = log.rank() == 0
    if first:
        for text in waiting(settings, flags_of(argv), int(os.environ.get("WORLD_SIZE", "1"))):
            log.get_logger(__name__).info("%s", text)
    inputs = read_inputs(settings, architecture, check_tokenizer=True) if first else None
    export = None if inputs is None else _export(settings, inputs.hf_dir)
    watch = Heartbeat.from_environment(settings.control.heartbeat_timeout_seconds)
    with watch or contextlib.nullcontext():
        init_distributed(device, settings.runtime.distributed_timeout_minutes)
        if inputs is None:
            inputs = read_inputs(settings, architecture, check_tokenizer=False)
        log.get_logger(__name__).info("device: %s (%s)", device.kind, device.reason)
        code = train(prepare(settings, inputs, device.torch_device(local_rank())))
        # Only after success: a rank that leaves in the middle of an error would wait for others.
        shutdown_distributed()
    if code:
        return code
    if export is not None:
        export()
    return 0


def _export(settings: Settings, model_dir: Path) -> Callable[[], None] | None:
    """What writes --save-hf from the last checkpoint; a place that will not do is found now."""
    target, save = settings.checkpoint.save_hf, settings.checkpoint.save
    if target is None:
        return None
    assert save is not None  # CheckpointSettings
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"--save-hf {target}: is there already; choose another directory")
    # Late: it imports megatron-core, which must be patched first.
    from mindspeed_llm.checkpoint.convert import check_apart, check_hf_target, mcore_to_hf
    from mindspeed_llm.checkpoint.merge import merge_to_hf
    from mindspeed_llm.checkpoint.weights import locate

    check_hf_target(settings.checkpoint.load, target)
    check_apart(save, target)
    check = checker(save, model_dir) if settings.checkpoint.verify else None

    def export() -> None:
        place = locate(save)
        if place.adapter is None:
            done = mcore_to_hf(save, target, check=check)
        else:
            done = merge_to_hf(place, target, check=check)
        log.get_logger(__name__).info("%d tensors written to %s", done.tensors, done.path)

    return export
