"""Tests of mindspeed_llm.data.targets."""

from __future__ import annotations

import pytest

from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.targets import choose_targets

ROLES = ("user", "assistant")


def talk(*marks: bool | None) -> Conversation:
    return Conversation(tuple(Message(ROLES[i % 2], f"{i}", mark is not False, mark)
                              for i, mark in enumerate(marks)))  # fmt: skip


@pytest.mark.parametrize(
    ("marks", "train_on", "inputs", "targets"),
    [
        ((None,) * 4, "all", False, [1, 3]),
        ((None,) * 4, "last", False, [3]),
        ((None,) * 4, "none", False, []),
        ((None,) * 4, "all", True, [0, 1, 2, 3]),
        ((None,) * 4, "last", True, [0, 2, 3]),
        ((None, False, None, None), "all", False, [3]),
        ((None, True, None, None), "last", False, [1, 3]),
        ((None, None, None, False), "last", False, []),
        ((None, True, None, None), "none", False, [1]),
        ((True, None, None, None), "all", False, [0, 1, 3]),
        ((False, None, None, None), "all", True, [1, 2, 3]),
    ],
)
def test_a_message_decides_first_and_the_settings_for_the_rest(marks, train_on, inputs, targets):
    chosen = choose_targets(talk(*marks), train_on, inputs)
    assert [i for i, m in enumerate(chosen.messages) if chosen.is_target(m)] == targets
    assert [m.content for m in chosen.messages] == ["0", "1", "2", "3"]
