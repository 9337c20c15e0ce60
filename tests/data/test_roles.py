"""Tests of mindspeed_llm.data.roles: whatever the order of turns, nothing is put in."""

from __future__ import annotations

import itertools

import pytest

from mindspeed_llm.data.messages import Conversation, Message, RowError
from mindspeed_llm.data.roles import JOINED, NO_ANSWER, NO_QUESTION, repair

ROLES = {"u": "user", "a": "assistant"}


def talk(turns: str) -> Conversation:
    return Conversation(tuple(Message(ROLES[r], f"{r}{i}") for i, r in enumerate(turns)), "S")


@pytest.mark.parametrize(
    ("turns", "texts", "repairs"),
    [
        ("ua", ["u0", "a1"], ()),
        ("uua", ["u0\nu1", "a2"], (JOINED,)),
        ("uaaua", ["u0", "a1\na2", "u3", "a4"], (JOINED,)),
        ("aua", ["u1", "a2"], (NO_QUESTION,)),
        ("aaua", ["u2", "a3"], (JOINED, NO_QUESTION)),
        ("uau", ["u0", "a1"], (NO_ANSWER,)),
        ("auuauu", ["u1\nu2", "a3"], (JOINED, NO_QUESTION, NO_ANSWER)),
    ],
)
def test_repairs_are_named(turns, texts, repairs):
    mended, done = repair(talk(turns))
    assert [m.content for m in mended.messages] == texts and done == repairs
    assert mended.system == "S"


@pytest.mark.parametrize("turns", ["", "u", "a", "au", "uuu", "aau"])
def test_what_cannot_be_mended_stays_and_is_refused(turns):
    mended, done = repair(talk(turns))
    assert (mended, done) == (talk(turns), ())
    with pytest.raises(RowError):
        mended.check_trainable()


def test_every_order_becomes_alternating_turns_of_its_own_texts_in_order():
    for length in range(2, 8):
        for turns in itertools.product("ua", repeat=length):
            mended, done = repair(talk("".join(turns)))
            if "ua" not in "".join(turns):
                assert not done
                continue
            mended.check_trainable()
            pieces = "\n".join(m.content for m in mended.messages).split("\n")
            numbers = [int(piece[1:]) for piece in pieces]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert all(piece[0] == turns[int(piece[1:])] for piece in pieces)


@pytest.mark.parametrize(
    ("marks", "loss"),
    [((None, None), None), ((True, None), True), ((False, None), False), ((True, False), False)],
)
def test_joined_turns_are_a_target_only_where_each_is(marks, loss):
    turns = [Message("user", "u")]
    turns += [Message("assistant", "a", mark is not False, mark) for mark in marks]
    answer = repair(Conversation(tuple(turns)))[0].messages[1]
    assert answer.loss is loss and answer.train is (loss is not False)
