"""Owns the settings of an evaluation; knows nothing of how scores are made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is evaluated"""

    data: Path | None = setting(
        None, help="memory dialogues to score (test.parquet of `mindspeed-llm dialogues`)"
    )
    ordinary: Path | None = setting(
        None, help="dialogues whose loss is reported beside it (ordinary.parquet)"
    )
    replay: Path | None = setting(
        None, help="JSON with a user's turns to replay, e.g. guide.json; the replies are shown"
    )
    json: Path | None = setting(None, help="write all results here")
    max_new_tokens: int = setting(32, help="longest answer to a memory question, in tokens")
    replay_tokens: int = setting(96, help="longest reply of --replay, in tokens")
    micro_batch_size: int = setting(12, help="dialogues answered together")

    def __post_init__(self) -> None:
        if self.data is None and self.ordinary is None and self.replay is None:
            raise ConfigError("nothing to evaluate; give --data, --ordinary or --replay")
        for name in ("max_new_tokens", "replay_tokens", "micro_batch_size"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}; expected 1 or more")
