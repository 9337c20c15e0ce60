"""Owns the settings of the comparison of an export with its checkpoint; compares nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is compared"""

    load: Path = setting(help="checkpoint, or Hugging Face model, that the export was made of")
    hf_dir: Path = setting(help="exported Hugging Face directory")

    trust_pickle: bool = setting(
        False, help="read a pickled checkpoint of Megatron-LM or MindSpeed-LLM"
    )

    def __post_init__(self) -> None:
        for flag, place in (("--load", self.load), ("--hf-dir", self.hf_dir)):
            if not place.is_dir():
                raise ConfigError(f"{flag} {place}: no such directory")
