"""Tests of mindspeed_llm.data.turns: lines that say what a row was made of, and shorter rows."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.turns import Shortener, Turns
from mindspeed_llm.errors import DataError

TALK = Conversation.of("A?", "a.\n\u2028\ud800", "B\x00?", "b \u00e9\U0001f600")
MARKED = dataclasses.replace(
    TALK, messages=tuple(dataclasses.replace(m, loss=m.role == "user") for m in TALK.messages)
)
CALLED = dataclasses.replace(TALK, tools="[{}]", messages=tuple(
    dataclasses.replace(m, tool=("{}", "{content}")[:i]) for i, m in enumerate(TALK.messages)
))  # fmt: skip
SETTLED = dataclasses.replace(
    TALK, messages=tuple(dataclasses.replace(m, train=i == 3) for i, m in enumerate(TALK.messages))
)


@pytest.mark.parametrize(
    "turns",
    [
        Turns(TALK), Turns(dataclasses.replace(TALK, system="")), Turns(MARKED), Turns(CALLED),
        Turns(dataclasses.replace(SETTLED, system="S", train_inputs=True), chosen=True),
    ],
)  # fmt: skip
def test_a_line_says_everything(turns):
    line = turns.line()
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert Turns.of_line(line, "x:1") == turns


def test_a_single_pair_has_nothing_to_drop():
    line = Turns(Conversation.of("A?" * 1000, "a.")).line()
    assert line == b"null\n" and Turns.of_line(line, "x:1") is None


@pytest.mark.parametrize("line", [b"", b"{\n", b"[1]\n", b"{}\n", b'{"turns": 3}\n', b"7\n",
                                  b'{"turns": ["a", "b"], "loss": [1]}\n', b"\xff\n"])  # fmt: skip
def test_a_damaged_line_is_named(line):
    with pytest.raises(DataError, match=r"set_packed_turns.jsonl:7: not the turns .*prepare"):
        Turns.of_line(line, "set_packed_turns.jsonl:7")


def test_the_last_answer_left_is_the_last(renderer_of):
    renderer = renderer_of("chatml")
    talk = Conversation.of("A?", "a.", "B?", "b.", "C?", "c.")
    whole = len(renderer.render(talk).ids)
    shortener = Shortener(renderer, "newest-turns", whole - 1, "last", False)
    left, row = shortener.shorten(Turns(talk))
    assert left.conversation.messages == talk.messages[:4]
    assert renderer.tokenizer.decode([i for i in row.labels if i >= 0]) == "b.<|im_end|>"
    settled = Turns(shortener.targets(talk), chosen=True)  # its one target goes
    assert shortener.shorten(settled) is None
