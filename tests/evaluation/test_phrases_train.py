"""The words of mt-recall's training part: none twice, and enough of each for a dialogue."""

import dataclasses

from mindspeed_llm.evaluation.phrases import Phrases
from mindspeed_llm.evaluation.phrases_train import TRAIN


def test_nothing_is_said_twice() -> None:
    for field in dataclasses.fields(Phrases):
        value = getattr(TRAIN, field.name)
        for some in value.values() if isinstance(value, dict) else [value]:
            assert len(set(some)) == len(some), field.name
            assert len(some) > 1, field.name
