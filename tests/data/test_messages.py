"""Tests of mindspeed_llm.data.messages."""

from __future__ import annotations

import pickle

import pytest

from mindspeed_llm.data.messages import Conversation, Message, RowError


def test_turns_alternate_and_an_open_conversation_awaits_an_answer():
    assert Conversation.of("a").is_open
    assert not Conversation.of("a", "b").is_open
    Conversation.of("a", "b", "c").check_turns()
    Conversation.of("a", "b").check_trainable()


@pytest.mark.parametrize(
    ("messages", "field", "kind"),
    [
        ((), "messages", "empty conversation"),
        ((Message("assistant", "a"),), "messages[0]", "role order"),
        ((Message("user", "a"), Message("user", "b")), "messages[1]", "role order"),
        ((Message("user", "a"),), "messages[0]", "no answer"),
        ((Message("user", "a"), Message("assistant", "b", train=False)), "messages", "no target"),
    ],
)
def test_what_cannot_be_trained_is_named(messages, field, kind):
    with pytest.raises(RowError) as caught:
        Conversation(messages).check_trainable()
    assert (caught.value.field, caught.value.kind) == (field, kind)


def test_a_row_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(RowError("output", "null", kind="empty answer")))
    assert (error.field, error.reason, error.kind) == ("output", "null", "empty answer")
