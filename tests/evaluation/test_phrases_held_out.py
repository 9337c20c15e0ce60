"""The words of mt-recall's test: none twice, and enough of each for a dialogue."""

import dataclasses

from mindspeed_llm.evaluation.phrases import Phrases
from mindspeed_llm.evaluation.phrases_held_out import TEST


def test_nothing_is_said_twice() -> None:
    for field in dataclasses.fields(Phrases):
        value = getattr(TEST, field.name)
        for some in value.values() if isinstance(value, dict) else [value]:
            assert len(set(some)) == len(some), field.name
            assert len(some) > 1, field.name
