"""Settings of an evaluation check themselves."""

from pathlib import Path

import pytest

from mindspeed_llm.config.evaluate import EvaluateSettings
from mindspeed_llm.errors import ConfigError


def test_something_must_be_evaluated() -> None:
    with pytest.raises(ConfigError, match="--data, --input or --replay"):
        EvaluateSettings()
    for given in ({"data": Path("x")}, {"input": ("x",)}, {"replay": Path("x")}):
        EvaluateSettings(**given)


@pytest.mark.parametrize("name", ["max_new_tokens", "replay_tokens", "micro_batch_size",
                                  "max_conversations"])  # fmt: skip
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        EvaluateSettings(input=("x",), **{name: 0})


@pytest.mark.parametrize(
    "given", [{"png": Path("x")}, {"map_keys": {"a": "b"}}, {"max_conversations": 3}]
)
def test_a_flag_without_its_subject_is_refused(given: dict) -> None:
    with pytest.raises(ConfigError, match="--data|--input"):
        EvaluateSettings(replay=Path("x"), **given)
