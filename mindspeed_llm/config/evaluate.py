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
        None, help="mt-recall to score (test.jsonl of `mindspeed-llm dialogues`)"
    )
    input: tuple[str, ...] | None = setting(
        None,
        help="conversations, as preprocess_data.py reads them: loss and perplexity by turn, stop "
        "accuracy, and what the history is worth to the last reply",
        metavar="PATH",
    )
    handler_name: str = setting(
        "OpenAIInstructionHandler", help="of --input: see preprocess_data.py"
    )
    map_keys: dict | None = setting(None, help="of --input: see preprocess_data.py")
    max_conversations: int | None = setting(None, help="of --input: the first N of them")
    replay: Path | None = setting(
        None, help="JSON with a user's turns to replay, e.g. guide.json; the replies are shown"
    )
    compare: Path | None = setting(
        None,
        help="another model to set beside --load: a checkpoint or Hugging Face directory, which "
        "is evaluated first, or the --json file of an earlier evaluation of the same data",
    )
    json: Path | None = setting(None, help="write all results here")
    png: Path | None = setting(None, help="draw right answers against the distance in turns here")
    max_new_tokens: int = setting(40, help="longest reply to a question of mt-recall, in tokens")
    replay_tokens: int = setting(96, help="longest reply of --replay, in tokens")
    micro_batch_size: int = setting(12, help="questions answered together")

    def __post_init__(self) -> None:
        if self.data is None and self.input is None and self.replay is None:
            raise ConfigError("nothing to evaluate; give --data, --input or --replay")
        if self.png is not None and self.data is None:
            raise ConfigError(f"--png {self.png} shows mt-recall; give --data")
        if self.input is None and (self.map_keys or self.max_conversations is not None):
            flag = "--map-keys" if self.map_keys else "--max-conversations"
            raise ConfigError(f"{flag} has no effect without --input")
        for name in ("max_new_tokens", "replay_tokens", "micro_batch_size", "max_conversations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {value}; expected 1 or more")
