"""Owns which flags of a training run have no effect beside the others, as a table; a flag that was
given and has none is an error. Knows neither files nor models: what depends on them is checked
where they are read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable

from mindspeed_llm.config.train import Settings
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inert:
    """A flag, when it has no effect although it was given, and the words for it.

    Attributes:
        flag: as it is typed.
        where: of the settings and all flags that were given: whether this one has no effect.
        why: continues "--flag has no effect".
        mend: what to do about it.
    """

    flag: str
    where: Callable[[Settings, Collection[str]], bool]
    why: str
    mend: str


def _constant(settings: Settings) -> bool:
    return settings.optimizer.lr_decay_style == "constant"


def _warms_up(settings: Settings) -> bool:
    return bool(settings.optimizer.lr_warmup_iters or settings.optimizer.lr_warmup_fraction)


def _goes_back(settings: Settings) -> bool:
    kept = settings.checkpoint
    return bool(kept.save_interval or kept.save_best) or kept.load == kept.save


def _evaluations(settings: Settings) -> float:
    """How many there are at most: every --eval-interval iterations, and at the end."""
    last = settings.train.train_iters
    return math.inf if last is None else math.ceil(last / settings.log.eval_interval)


def _beyond(settings: Settings, iteration: int | None) -> bool:
    last = settings.train.train_iters
    return last is not None and iteration is not None and iteration > last


# Flags of the guide that state an "off" stay accepted: --min-lr 0, --eval-iters 0.
TABLE: tuple[Inert, ...] = (
    Inert("--min-lr", lambda s, _: _constant(s) and s.optimizer.min_lr > 0,
          "with --lr-decay-style constant, which never goes below --lr",
          "drop it (or --min-lr 0), or choose another --lr-decay-style"),
    Inert("--lr-decay-iters",
          lambda s, _: _constant(s) and s.optimizer.lr_warmup_fraction is None,
          "with --lr-decay-style constant and no --lr-warmup-fraction",
          "drop it, or choose another --lr-decay-style"),
    Inert("--lr-wsd-decay-style", lambda s, _: s.optimizer.lr_decay_style != "WSD",
          "without --lr-decay-style WSD", "drop it"),
    Inert("--lr-warmup-init", lambda s, _: s.optimizer.lr_warmup_init > 0 and not _warms_up(s),
          "without a warm-up", "drop it, or give --lr-warmup-iters or --lr-warmup-fraction"),
    Inert("--override-opt-param-scheduler",
          lambda s, _: s.checkpoint.finetune or not s.checkpoint.load_optim,
          "with --finetune or --no-load-optim, whose schedule is always a new one", "drop it"),
    Inert("--pad-to-multiple-of",
          lambda s, _: not (s.data.variable_seq_lengths or s.data.pack),
          "without --variable-seq-lengths or --pack: all rows are padded to --seq-length",
          "drop it, or give one of them"),
    Inert("--eval-interval", lambda s, given: "--eval-iters" not in given,
          "without --eval-iters N, the batches of an evaluation", "drop it, or give --eval-iters"),
    Inert("--on-non-finite",
          lambda s, _: s.control.on_non_finite == "rollback" and not _goes_back(s),
          "as rollback when no checkpoint is written on the way",
          "give --save-interval or --save-best, or choose stop or skip"),
    Inert("--moe-router-load-balancing-type",
          lambda s, _: s.train.moe_router_load_balancing_type == "aux_loss"
          and not s.train.moe_aux_loss_coeff,
          "as aux_loss without --moe-aux-loss-coeff X, its weight",
          "give the weight, or drop the flag"),
    Inert("--exit-interval", lambda s, _: _beyond(s, s.control.exit_interval),
          "beyond --train-iters, the last iteration", "lower or drop it"),
    Inert("--early-stop-patience",
          lambda s, _: _evaluations(s) <= (s.control.early_stop_patience or 0),
          "where there are not more evaluations than it says",
          "lower it, lower --eval-interval, or drop it"),
    Inert("--profile", lambda s, _: _beyond(s, s.log.profiled[1]),
          "when the last iteration of its trace is beyond --train-iters: none would be written",
          "give a lower --profile-step-start or --profile-step-end, or drop it"),
    Inert("--use-pytorch-profiler", lambda s, _: not s.log.profile, "without --profile",
          "drop it, or give --profile"),
)  # fmt: skip
_SAME = {"--override-opt_param-scheduler": "--override-opt-param-scheduler"}


def flags_of(argv: Iterable[str]) -> frozenset[str]:
    """The flags that are given in `argv`, without their values."""
    words = (word.partition("=")[0] for word in argv if word.startswith("--"))
    return frozenset(_SAME.get(word, word) for word in words)


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A flag that acts with more processes only; one command line serves any number of them."""

    flag: str
    where: Callable[[Settings, int], bool]
    why: str


def _alone(_: Settings, processes: int) -> bool:
    return processes == 1


WAITING: tuple[Waiting, ...] = (
    Waiting("--use-distributed-optimizer", lambda s, n: s.parallel.data_parallel_size(n) == 1,
            "shards nothing, as there is one data-parallel replica"),
    Waiting("--heartbeat-timeout-seconds", _alone, "waits for nobody, as there is one process"),
    Waiting("--distributed-timeout-minutes", _alone, "waits for nobody, as there is one process"),
)  # fmt: skip


def waiting(settings: Settings, given: Collection[str], processes: int) -> list[str]:
    """What to say of the flags in `given` that do nothing with so few processes."""
    return [
        f"{row.flag} {row.why}"
        for row in WAITING
        if row.flag in given and row.where(settings, processes)
    ]


def check_effect(settings: Settings, given: Collection[str]) -> None:
    """Raise ConfigError if one of the flags in `given` has no effect beside the others."""
    for row in TABLE:
        if row.flag in given and row.where(settings, given):
            raise ConfigError(f"{row.flag} has no effect {row.why}; {row.mend}")
