"""Settings of the generator check themselves."""

from pathlib import Path

import pytest

from mindspeed_llm.config.dialogues import DialoguesConfig
from mindspeed_llm.errors import ConfigError


@pytest.mark.parametrize("name", ["train", "test"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is 0"):
        DialoguesConfig(output=Path("x"), **{name: 0})


@pytest.mark.parametrize("distances", [(1,), (2, 33), (2, 2)])
def test_distances_lie_between_two_and_thirty_two(distances: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--distances"):
        DialoguesConfig(output=Path("x"), distances=distances)
