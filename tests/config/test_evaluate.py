"""Settings of an evaluation check themselves."""

from pathlib import Path

import pytest

from mindspeed_llm.config.evaluate import EvaluateSettings
from mindspeed_llm.errors import ConfigError


def test_something_must_be_evaluated() -> None:
    with pytest.raises(ConfigError, match="--data, --ordinary or --replay"):
        EvaluateSettings()
    for name in ("data", "ordinary", "replay"):
        EvaluateSettings(**{name: Path("x")})


@pytest.mark.parametrize("name", ["max_new_tokens", "replay_tokens", "micro_batch_size"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        EvaluateSettings(data=Path("x"), **{name: 0})
