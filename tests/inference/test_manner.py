"""Settings change by name, one at a time, or not at all."""

import pytest

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.manner import Manner
from mindspeed_llm.inference.sampling import Sampling


@pytest.mark.parametrize(
    "name,text,value",
    [("temperature", "0.7", 0.7), ("top-k", "5", 5), ("--top-p", "0.9", 0.9), ("min_p", "0.1", 0.1),
     ("repetition_penalty", "1.2", 1.2), ("seed", "3", 3), ("logprobs", "2", 2),
     ("logprobs", "none", None), ("max_new_tokens", "9", 9), ("history_turns", "0", 0),
     ("overflow", "error", "error"), ("stop", "###", ("###",)), ("stop", "", ()),
     ("stop", '["\\n", "b"]', ("\n", "b")), ("stop", '"\\n"', ("\n",)),
     ("stats", "on", True), ("stats", "off", False)],
)  # fmt: skip
def test_each_setting_is_read(name: str, text: str, value: object) -> None:
    before = Manner()
    after = before.changed(name, text)
    key = name.removeprefix("--").replace("-", "_")
    assert after.rows() == before.rows() | {key: value}
    assert before == Manner()


@pytest.mark.parametrize(
    "name,text,message",
    [("colour", "red", "no setting 'colour'; there are temperature"),
     ("temperature", "warm", "temperature is 'warm'; expected a number"),
     ("temperature", "-1", "--temperature is -1"), ("top_k", "2.5", "top_k is '2.5'"),
     ("stats", "maybe", "expected on or off"), ("stop", '[""]', "--stop has an empty text"),
     ("stop", "[1]", "expected a text"), ("overflow", "shift", "drop-turns or error"),
     ("max_new_tokens", "0", "--max-new-tokens is 0"), ("history_turns", "-1", "--history-turns")],
)  # fmt: skip
def test_what_is_wrong_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Manner().changed(name, text)


def test_rows_and_back() -> None:
    manner = Manner(sampling=Sampling(temperature=0.5, top_k=3, seed=9), stop=("a",), stats=True)
    assert Manner.of(manner.rows()) == manner
