"""Owns the settings of a run beside model, data and optimizer: checkpoints, records, processes.
Knows neither files nor devices.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from mindspeed_llm.config.flags import at_least, flag_of, setting
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Where weights come from and go to"""

    load: Path = setting(
        help="Hugging Face model, or Megatron checkpoint (convert_ckpt.py or an earlier --save)"
    )
    save: Path | None = setting(None, help="directory for checkpoints; without it nothing is kept")
    save_interval: int | None = setting(None, help="save every N iterations, and at the end")
    keep_last: int | None = setting(
        None, help="delete all but the N latest checkpoints of --save; default: keep all"
    )
    save_retain_interval: int | None = setting(
        None, help="keep those of every N iterations, and else the latest (or --keep-last) only"
    )
    save_best: bool = setting(
        False, help="save whenever an evaluation has the lowest validation loss, and keep that one"
    )
    save_hf: Path | None = setting(
        None,
        help="at the end, write the model here as transformers opens it, and compare its logits; "
        "needs --save",
    )
    verify: bool = setting(
        True, negative="--no-verify", help="do not compare the logits of --save-hf"
    )
    trust_pickle: bool = setting(
        False,
        help="start from pickled weights too (.bin, torch_dist and mp_rank checkpoints), by "
        "torch's weights_only loader, which runs no code of theirs",
    )
    finetune: bool = setting(
        False, help="take only the weights of --load: iteration 0, new optimizer, new data order"
    )
    load_optim: bool = setting(
        True,
        negative="--no-load-optim",
        help="continue without the optimizer's state and the place in the schedule",
    )
    load_rng: bool = setting(
        True, negative="--no-load-rng", help="continue with the random state of a new run"
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "save_interval", "keep_last", "save_retain_interval")
        for name in ("save_interval", "keep_last", "save_retain_interval", "save_best"):
            if getattr(self, name) and self.save is None:
                raise ConfigError(f"{flag_of(name)} has no effect without --save DIRECTORY")
        every, kept = self.save_interval, self.save_retain_interval
        if kept is not None and every is None:
            raise ConfigError(
                f"--save-retain-interval {kept} has no effect without --save-interval N, "
                "which says which iterations are saved"
            )
        if kept is not None and every is not None and kept % every:
            raise ConfigError(
                f"--save-retain-interval {kept} is not a multiple of --save-interval {every}; only "
                "iterations that are saved can be kept"
            )
        if self.save_hf is not None and self.save is None:
            raise ConfigError(
                f"--save-hf {self.save_hf} is made of the last checkpoint; give --save DIRECTORY"
            )
        if not self.verify and self.save_hf is None:
            raise ConfigError("--no-verify has no effect without --save-hf DIRECTORY")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is shown and recorded, and evaluation on the way"""

    log_interval: int = setting(1, help="print a line every N iterations")
    log_dir: Path | None = setting(
        None, help="for train.jsonl and loss.png; default: logs/ in --save, none without --save"
    )
    device_peak_tflops: float | None = setting(
        None, help="peak of one device in this precision, for MFU where it is not known here"
    )
    tensorboard_dir: Path | None = setting(None, help="write TensorBoard's files there")
    profile: bool = setting(False, help="trace some iterations with torch.profiler, to --log-dir")
    profile_step_start: int | None = setting(
        None, help="of --profile: the iteration behind which the trace begins (10)"
    )
    profile_step_end: int | None = setting(None, help="of --profile: its last iteration (12)")
    profile_ranks: tuple[int, ...] | None = setting(
        None, help="of --profile: ranks that write a trace (0)", metavar="RANK"
    )
    eval_interval: int = setting(1000, help="evaluate every N iterations; see --eval-iters")
    eval_iters: int = setting(0, help="validation batches of an evaluation; 0 does not evaluate")

    def __post_init__(self) -> None:
        at_least(self, 1, "log_interval", "eval_interval")
        at_least(self, 0.001, "device_peak_tflops")
        at_least(self, 0, "eval_iters", "profile_step_start")
        for name in ("profile_step_start", "profile_step_end", "profile_ranks"):
            if getattr(self, name) is not None and not self.profile:
                raise ConfigError(f"{flag_of(name)} has no effect without --profile")
        start, end = self.profiled
        if start >= end:
            raise ConfigError(
                f"--profile-step-end {end} is not above --profile-step-start {start}; the "
                "iterations between them are traced"
            )

    @property
    def profiled(self) -> tuple[int, int]:
        """The iteration behind which the trace begins, and its last one."""
        start = 10 if self.profile_step_start is None else self.profile_step_start
        return start, start + 2 if self.profile_step_end is None else self.profile_step_end


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """When a run ends early, and what it does about numbers that are not finite"""

    exit_interval: int | None = setting(
        None, help="save and leave at the next iteration that is a multiple of N"
    )
    exit_duration_in_mins: float | None = setting(
        None, help="save and leave after the iteration that ends more than X minutes from the start"
    )
    early_stop_patience: int | None = setting(
        None, help="end after N evaluations in a row that did not lower the validation loss"
    )
    on_non_finite: str = setting(
        "stop",
        choices=("stop", "skip", "rollback"),
        help="loss or gradients that are not finite: end the run, leave the batch out, or go back "
        "to the last checkpoint and leave out all data since",
    )
    heartbeat_timeout_seconds: float = setting(
        20.0, help="a process that is silent for so long is named and ends the job; 0: wait for it"
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "exit_interval", "early_stop_patience")
        minutes, silence = self.exit_duration_in_mins, self.heartbeat_timeout_seconds
        if minutes is not None and not 0 < minutes < math.inf:
            raise ConfigError(f"--exit-duration-in-mins is {minutes}; expected a number above 0")
        if silence != 0 and not 5 <= silence < math.inf:
            raise ConfigError(
                f"--heartbeat-timeout-seconds is {silence}; expected 5 or more (processes are "
                "looked at every 2 seconds), or 0 for none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Device and process groups"""

    device: str | None = setting(
        None, choices=("npu", "cuda", "cpu"), help="default: env DEVICE, else the best that works"
    )
    distributed_backend: str | None = setting(
        None, choices=("nccl", "hccl", "gloo"), help="must be the device's own; default: it"
    )
    distributed_timeout_minutes: float = setting(10.0, help="a collective that takes longer fails")
    require_fused: bool = setting(
        False, help="on npu and cuda: a kernel that falls back to plain torch is an error"
    )

    def __post_init__(self) -> None:
        if not 0 < self.distributed_timeout_minutes < math.inf:
            raise ConfigError(
                f"--distributed-timeout-minutes is {self.distributed_timeout_minutes}; "
                "expected a number above 0"
            )

    def check_device(self, device: str, backend: str) -> None:
        """Raise ConfigError if --distributed-backend is not `backend`, the one of `device`, or
        --require-fused has no effect there."""
        if self.require_fused and device == "cpu":
            raise ConfigError(
                "--require-fused has no effect on a CPU, whose kernels are plain torch; drop it"
            )
        asked = self.distributed_backend
        # Launchers written for torch_npu's transfer_to_npu say nccl where hccl is meant.
        if asked in (None, backend) or (device == "npu" and asked == "nccl"):
            return
        raise ConfigError(
            f"--distributed-backend {asked} does not fit the device {device}, whose backend is "
            f"{backend}; drop the flag or choose another --device"
        )
