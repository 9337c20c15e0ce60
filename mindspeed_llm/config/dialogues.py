"""Owns the settings of the dialogue generator; knows nothing of how dialogues are made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialoguesConfig:
    """Memory dialogues"""

    output: Path = setting(help="directory to write the files into")
    train: int = setting(480, help="dialogues in train.parquet")
    test: int = setting(108, help="dialogues in test.parquet, all names and phrasings new")
    seed: int = setting(0, help="the same seed writes the same dialogues")

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; expected 1 or more")
