"""Settings of the dialogue generator check themselves."""

from pathlib import Path

import pytest

from mindspeed_llm.config.dialogues import DialoguesConfig
from mindspeed_llm.errors import ConfigError


@pytest.mark.parametrize("name", ["train", "test"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is 0"):
        DialoguesConfig(output=Path("x"), **{name: 0})


def test_defaults() -> None:
    config = DialoguesConfig(output=Path("x"))
    assert (config.train, config.test, config.seed) == (480, 108, 0)
