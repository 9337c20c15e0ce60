"""Tests of mindspeed_llm.data.truncation."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.truncation import POLICIES, shorten

TALK = Conversation.of("one", "1", "two", "22", "three", "333", system="S")


def length(conversation: Conversation) -> int:
    return len(conversation.system or "") + sum(len(m.content) for m in conversation.messages)


@pytest.mark.parametrize(
    ("policy", "limit", "texts"),
    [
        ("oldest-turns", 14, ("two", "22", "three", "333")),  # an exact fit
        ("oldest-turns", 13, ("three", "333")),
        ("oldest-turns", 9, ("three", "333")),
        ("newest-turns", 10, ("one", "1", "two", "22")),
        ("newest-turns", 9, ("one", "1")),
    ],
)
def test_whole_pairs_go_and_the_system_text_stays(policy, limit, texts):
    assert shorten(TALK, policy, limit, length) == Conversation.of(*texts, system="S")


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_left_where_no_pair_fits(policy):
    assert shorten(TALK, policy, 3, length) is None
    assert shorten(Conversation.of("a", "b"), policy, 1, length) is None


@pytest.mark.parametrize("policy", ["drop", "error"])
def test_two_policies_shorten_nothing(policy):
    assert shorten(TALK, policy, 14, length) is None


def test_a_rest_without_a_target_is_not_kept():
    last = dataclasses.replace(TALK.messages[-1], train=False)
    talk = dataclasses.replace(TALK, messages=(*TALK.messages[:-1], last))
    assert shorten(talk, "oldest-turns", 9, length) is None
    assert shorten(talk, "newest-turns", 9, length) is not None


def test_results_go_with_their_call():
    asked, called, given, said, again, last = TALK.messages
    talk = dataclasses.replace(TALK, messages=(
        asked, dataclasses.replace(called, tool=("{}",)), dataclasses.replace(given, tool=("R",)),
        said, again, last))  # fmt: skip
    assert shorten(talk, "oldest-turns", 14, length).messages == (again, last)
    assert shorten(talk, "newest-turns", 9, length).messages == talk.messages[:2]
