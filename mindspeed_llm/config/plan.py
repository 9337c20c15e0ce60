"""Owns the settings of the memory plan; computes nothing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError

_UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What is to be trained, and on what"""

    model: Path = setting(help="Hugging Face model or checkpoint; only its config.json is read")
    devices: int = setting(help="devices in all")
    memory: str = setting(help="memory of one device, e.g. 64GiB", metavar="SIZE")
    seq_length: int = setting(help="longest row in tokens")
    micro_batch_size: int = setting(1, help="rows in one forward pass of one model replica")
    bf16: bool = setting(
        True, negative="--fp32", help="plan for float32 weights and activations, not bfloat16"
    )
    use_distributed_optimizer: bool = setting(
        True,
        negative="--no-distributed-optimizer",
        help="plan for the whole optimizer state on every replica",
    )
    devices_per_node: int = setting(8, help="largest TP: it needs the fast links of one machine")
    headroom: float = setting(
        0.1, help="share of the memory left free for the driver, communication and fragments"
    )
    json: bool = setting(False, help="print JSON")

    def __post_init__(self) -> None:
        for name in ("devices", "micro_batch_size", "devices_per_node"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}; expected 1 or more")
        if self.seq_length < 2:
            raise ConfigError(f"--seq-length is {self.seq_length}; expected 2 or more")
        if not 0 <= self.headroom < 1:
            raise ConfigError(f"--headroom is {self.headroom}; expected 0 or more and below 1")
        self.bytes  # noqa: B018  checks the size

    @property
    def bytes(self) -> int:
        """`memory` in bytes."""
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", self.memory)
        if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
            raise ConfigError(
                f"--memory is {self.memory!r}; expected a number and one of {', '.join(_UNITS)}, "
                "for example 64GiB"
            )
        return int(float(match[1]) * _UNITS[match[2]])
