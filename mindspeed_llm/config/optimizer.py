"""Owns the settings of optimizer and learning-rate schedule; builds neither."""

from __future__ import annotations

import dataclasses
import math

from mindspeed_llm.config.flags import at_least, flag_of, setting
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, learning rate and its schedule"""

    optimizer: str = setting("adam", choices=("adam",), help="AdamW, as Megatron's adam")
    lr: float = setting(help="highest learning rate")
    min_lr: float = setting(0.0, help="learning rate at the end of the decay")
    lr_decay_style: str = setting(
        "linear", choices=("constant", "linear", "cosine", "WSD"), help="shape of the decay"
    )
    lr_decay_iters: int | None = setting(
        None, help="iteration that reaches --min-lr; default: last"
    )
    lr_warmup_fraction: float | None = setting(None, help="share of the decay spent warming up")
    lr_warmup_iters: int = setting(0, help="iterations of linear warm-up")
    lr_warmup_init: float = setting(0.0, help="learning rate at which the warm-up starts")
    lr_wsd_decay_iters: int | None = setting(None, help="of WSD: iterations of the final decay")
    lr_wsd_decay_style: str = setting(
        "exponential",
        choices=("exponential", "linear", "cosine", "minus_sqrt"),
        help="of WSD: shape of the final decay",
    )
    weight_decay: float = setting(0.01, help="decoupled; never on norms and biases")
    adam_beta1: float = setting(0.9, help="decay of the gradient's running mean")
    adam_beta2: float = setting(0.999, help="decay of the squared gradient's running mean")
    adam_eps: float = setting(1e-8, help="added to the denominator")
    clip_grad: float = setting(1.0, help="largest global gradient norm; 0 does not clip")
    override_opt_param_scheduler: bool = setting(
        False,
        aliases=("--override-opt_param-scheduler",),
        help="continue a run with another schedule than its checkpoint's",
    )
    use_distributed_optimizer: bool = setting(
        False, help="shard the optimizer's state over data-parallel ranks (ZeRO-1)"
    )

    def __post_init__(self) -> None:
        at_least(self, 0, "min_lr", "lr_warmup_init", "weight_decay", "clip_grad")
        at_least(self, 0, "lr_warmup_iters")
        at_least(self, 1, "lr_decay_iters", "lr_wsd_decay_iters")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"--lr is {self.lr}; expected a number above 0")
        for name in ("min_lr", "lr_warmup_init"):
            if getattr(self, name) > self.lr:
                raise ConfigError(
                    f"{flag_of(name)} {getattr(self, name)} is above --lr {self.lr}; lower it"
                )
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{flag_of(name)} is {getattr(self, name)}; expected 0 or more and below 1"
                )
        if not self.adam_eps > 0:
            raise ConfigError(f"--adam-eps is {self.adam_eps}; expected a number above 0")
        self._check_schedule()

    def _check_schedule(self) -> None:
        fraction = self.lr_warmup_fraction
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(f"--lr-warmup-fraction is {fraction}; expected 0 or more and below 1")
        if fraction is not None and self.lr_warmup_iters:
            raise ConfigError("give one of --lr-warmup-fraction and --lr-warmup-iters, not both")
        if (self.lr_decay_style == "WSD") != (self.lr_wsd_decay_iters is not None):
            raise ConfigError(
                "--lr-decay-style WSD needs --lr-wsd-decay-iters N, and only WSD takes it"
            )
