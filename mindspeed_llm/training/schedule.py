"""Owns learning rate and weight decay over the iterations: megatron-core's scheduler, built from
settings. Knows no models; counts samples as Megatron does, so its states mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.errors import ConfigError


def build_schedule(
    optimizer: MegatronOptimizer, settings: OptimizerSettings, *, iterations: int, batch_size: int
) -> OptimizerParamScheduler:
    """Schedule over `iterations` steps of `batch_size` samples; sets the first learning rate.

    As in Megatron, a warm-up starts at --lr-warmup-init: the first step of one has that rate.
    """
    check_schedule(settings, iterations)
    decay = settings.lr_decay_iters or iterations
    return OptimizerParamScheduler(
        optimizer,
        init_lr=settings.lr_warmup_init,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=_warmup(settings, decay) * batch_size,
        lr_decay_steps=decay * batch_size,
        lr_decay_style=settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=iterations * batch_size,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=False,
        wsd_decay_steps=(settings.lr_wsd_decay_iters or 0) * batch_size,
        lr_wsd_decay_style=settings.lr_wsd_decay_style,
    )


def check_schedule(settings: OptimizerSettings, iterations: int) -> None:
    """Raise ConfigError unless the schedule fits into `iterations`."""
    decay = settings.lr_decay_iters or iterations
    warmup = _warmup(settings, decay)
    if warmup >= decay:
        raise ConfigError(
            f"--lr-warmup-iters {warmup:g} is not below the {decay} iterations of the decay; "
            "lower it or raise --train-iters"
        )
    if settings.lr_wsd_decay_iters is not None and settings.lr_wsd_decay_iters + warmup > decay:
        raise ConfigError(
            f"--lr-wsd-decay-iters {settings.lr_wsd_decay_iters} and the warm-up of {warmup:g} "
            f"do not fit into {decay} iterations"
        )


def _warmup(settings: OptimizerSettings, decay: int) -> float:
    if settings.lr_warmup_fraction is not None:
        return settings.lr_warmup_fraction * decay
    return settings.lr_warmup_iters


_MEANING = {
    "max_lr": "--lr",
    "min_lr": "--min-lr",
    "lr_warmup_steps": "the warm-up (in samples)",
    "lr_decay_steps": "the decay (iterations x batch, in samples)",
    "lr_decay_style": "--lr-decay-style",
    "init_lr": "--lr-warmup-init",
    "wsd_decay_steps": "--lr-wsd-decay-iters (in samples)",
    "lr_wsd_decay_style": "--lr-wsd-decay-style",
}
# Settings that megatron-core's own state_dict() leaves out.
_UNSAID = ("init_lr", "wsd_decay_steps", "lr_wsd_decay_style")


def schedule_state(schedule: OptimizerParamScheduler) -> dict[str, Any]:
    """What `restore_schedule` continues: the place, and every setting that shapes the rate."""
    return schedule.state_dict() | {name: getattr(schedule, name) for name in _UNSAID}


def restore_schedule(
    schedule: OptimizerParamScheduler, saved: Mapping[str, Any], *, override: bool
) -> None:
    """Continue `saved`, the `schedule_state` of the interrupted run.

    Args:
        override: keep the settings of this run where they differ, from where the other one was.

    Raises:
        ConfigError: settings differ and `override` is False; names each with both values.
    """
    current = schedule_state(schedule)
    constant = current["lr_decay_style"] == "constant"  # then a longer run is the same schedule
    differing = [
        f"{meaning} is {current[name]}, the checkpoint has {saved[name]}"
        for name, meaning in _MEANING.items()
        if saved.get(name, current[name]) != current[name]
        and not (constant and name == "lr_decay_steps")
    ]
    if differing and not override:
        raise ConfigError(
            "the schedule is not the one of the checkpoint: " + "; ".join(differing) + ". Use its "
            "values, or --override-opt-param-scheduler to go on with these, or --finetune"
        )
    schedule.num_steps = 0
    schedule.step(saved["num_steps"])
