"""Owns the settings of the mt-recall generator; knows nothing of how dialogues are made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError

LONGEST = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialoguesConfig:
    """Dialogues of mt-recall"""

    output: Path = setting(help="directory to write the files into")
    train: int = setting(240, help="dialogues in train.jsonl, several questions each")
    talk: int = setting(
        120, help="conversations with a service in train.jsonl, so that tuning on memory alone "
        "does not replace how the model talks; or 0"
    )  # fmt: skip
    test: int = setting(
        48, help="dialogues of each of the eight families in test.jsonl; names, items and "
        "phrasings are new in them"
    )  # fmt: skip
    distances: tuple[int, ...] = setting(
        (2, 4, 6, 8, 16, 32), help=f"turns from what is told to the question, 2 to {LONGEST}"
    )
    seed: int = setting(0, help="the same seed writes the same dialogues")

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; expected 1 or more")
        if self.talk < 0:
            raise ConfigError(f"--talk is {self.talk}; expected 0 or more")
        wrong = [n for n in self.distances if not 2 <= n <= LONGEST]
        if wrong or len(set(self.distances)) != len(self.distances):
            raise ConfigError(
                f"--distances {' '.join(map(str, self.distances))}: expected different numbers of "
                f"turns from 2 to {LONGEST}"
            )
