"""Owns the settings that say which parameters are trained: all, low-rank adapters, or those that
patterns name. It knows no model; a name is matched by `trained`, wherever it comes from."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
DEFAULT_RANK, DEFAULT_ALPHA = 16, 32.0  # MindSpeed-LLM's


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Shape of a low-rank adapter: each target's weight W becomes W + alpha / rank * B A.

    `targets` are names of `TARGETS`, in its order.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def flags(self) -> str:
        """The same as flags of `posttrain_gpt.py`."""
        return (f"--lora-r {self.rank} --lora-alpha {self.alpha:g} --lora-dropout {self.dropout:g} "
                f"--lora-target-modules {' '.join(self.targets)}")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """Which parameters are trained: all of them, LoRA adapters, or those that patterns name"""

    lora_r: int | None = setting(
        None, help=f"train low-rank adapters of this rank, nothing else; with another --lora flag "
        f"{DEFAULT_RANK}"
    )  # fmt: skip
    lora_alpha: float | None = setting(
        None, help=f"scale adapters by alpha / rank; with another --lora flag {DEFAULT_ALPHA:g}"
    )  # fmt: skip
    lora_dropout: float | None = setting(None, help="share of an adapter's input dropped; or 0")
    lora_target_modules: tuple[str, ...] | None = setting(
        None, choices=TARGETS, help="linear layers that have an adapter; or all four"
    )
    lora_load: Path | None = setting(
        None,
        help="adapter to go on with, on the base weights of --load: a LoRA checkpoint of ours, or "
        "a PEFT directory that one was exported to",
    )
    freeze: tuple[str, ...] | None = setting(
        None, metavar="PATTERN", help="parameters that are not trained, e.g. 'embedding.*'; "
        "* is any text, [0-3] a choice, of names like decoder.layers.3.mlp.linear_fc1.weight"
    )  # fmt: skip
    train_only: tuple[str, ...] | None = setting(
        None, metavar="PATTERN", help="the only parameters that are trained; see --freeze"
    )

    def __post_init__(self) -> None:
        if self.lora_r is not None and self.lora_r < 1:
            raise ConfigError(f"--lora-r is {self.lora_r}; expected 1 or more")
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise ConfigError(f"--lora-alpha is {self.lora_alpha}; expected a number above 0")
        if self.lora_dropout is not None and not 0 <= self.lora_dropout < 1:
            raise ConfigError(
                f"--lora-dropout is {self.lora_dropout}; expected 0 or more and below 1"
            )
        named = self.lora_target_modules or ()
        if len(set(named)) != len(named):
            raise ConfigError(f"--lora-target-modules names one twice: {' '.join(named)}")
        if self.freeze and self.train_only:
            raise ConfigError("give one of --freeze and --train-only, not both")
        if self.patterns and self.wants_lora:
            flag = "--freeze" if self.freeze else "--train-only"
            raise ConfigError(
                f"{flag} has no effect with LoRA, which trains the adapters alone; drop one of them"
            )

    @property
    def wants_lora(self) -> bool:
        """Whether any --lora flag was given."""
        return any(
            getattr(self, field.name) is not None
            for field in dataclasses.fields(self)
            if field.name.startswith("lora_")
        )

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of --freeze or --train-only."""
        return self.freeze or self.train_only or ()

    def lora(self, loaded: LoraConfig | None = None) -> LoraConfig | None:
        """The adapter to train; None trains the model itself.

        Args:
            loaded: the adapter of --lora-load or --load, which decides; flags may repeat it.

        Raises:
            ConfigError: a flag says something else than `loaded`.
        """
        if not self.wants_lora and loaded is None:
            return None
        asked = self.lora_target_modules
        given = {
            "rank": self.lora_r,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "targets": None if asked is None else tuple(t for t in TARGETS if t in asked),
        }
        given = {name: value for name, value in given.items() if value is not None}
        if loaded is None:
            defaults = {"rank": DEFAULT_RANK, "alpha": DEFAULT_ALPHA, "dropout": 0.0,
                        "targets": TARGETS}  # fmt: skip
            return LoraConfig(**(defaults | given))
        # Dropout is no property of the weights: another run may use another.
        result = dataclasses.replace(loaded, dropout=given.pop("dropout", loaded.dropout))
        if dataclasses.replace(result, **given) != result:
            raise ConfigError(
                f"the adapter that is loaded has {loaded.flags()}; the flags say "
                f"{dataclasses.replace(result, **given).flags()}: drop them, or start a new adapter"
            )
        return result

    def trained(self, names: Iterable[str]) -> list[str]:
        """Those of the model's parameters `names` that --freeze and --train-only leave to train.

        Raises:
            ConfigError: a pattern that no name matches, or nothing is left.
        """
        names = list(names)
        if not self.patterns:
            return names
        flag = "--freeze" if self.freeze else "--train-only"
        for pattern in self.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"{flag} {pattern}: no parameter has such a name; names are like "
                    f"{', '.join(_examples(names))}"
                )
        matched = {n for n in names for p in self.patterns if fnmatch.fnmatchcase(n, p)}
        left = [name for name in names if (name in matched) == bool(self.train_only)]
        if not left:
            raise ConfigError(f"{flag} {' '.join(self.patterns)} leaves nothing to train")
        return left


def _examples(names: Sequence[str]) -> list[str]:
    """One name of each kind: outside of the layers, and of the first layer."""
    outside = [name for name in names if ".layers." not in name]
    return outside[:2] + [name for name in names if ".layers.0." in name][:4]
