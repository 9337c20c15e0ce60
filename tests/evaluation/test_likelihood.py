"""What is made of losses: by turn, stop accuracy, what a history is worth."""

import math

import pytest

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.evaluation.likelihood import (
    Scored,
    gain_of,
    only_last,
    perplexity,
    summary,
    with_history_of,
)

END, NO = 9, -100


def test_replies_are_runs_of_targets() -> None:
    labels = [NO, NO, 5, END, NO, NO, 6, 7, END]
    scored = Scored.of(labels, [(1.0, 5), (2.0, END), (3.0, 6), (4.0, 8), (5.0, 8)])
    assert [[t.id for t in reply] for reply in scored.replies] == [[5, END], [6, 7, END]]
    assert [[t.loss for t in reply] for reply in scored.replies] == [[1, 2], [3, 4, 5]]


def test_loss_by_turn_and_stop_accuracy() -> None:
    first = Scored.of([NO, 5, END, NO, 6, END], [(1.0, 5), (3.0, END), (2.0, END), (2.0, 4)])
    second = Scored.of([NO, 5, END], [(2.0, 5), (2.0, END)])
    found = summary([first, second], {END})
    assert found["loss"] == pytest.approx(2.0) and found["tokens"] == 6 and found["replies"] == 3
    assert found["perplexity"] == pytest.approx(math.exp(2.0))
    assert found["ends"] == pytest.approx(2 / 3)  # the second reply of `first` would go on
    assert found["early"] == pytest.approx(1 / 3)  # and would have been empty
    assert [(t["turn"], t["replies"], t["tokens"]) for t in found["turns"]] == [
        (1, 2, 4),
        (2, 1, 2),
    ]
    assert found["turns"][0]["ends"] == 1 and found["turns"][1]["ends"] == 0


def test_no_ends_are_no_share() -> None:
    assert summary([Scored.of([NO, 5], [(1.0, 5)])], {END})["ends"] is None


def test_perplexity_never_overflows() -> None:
    assert perplexity(0) == 1 and perplexity(1e6) == math.inf


def test_the_last_reply_alone_is_a_target_and_histories_change_places() -> None:
    one = Conversation.of("u1", "a1", "u2", "a2", system="s")
    two = Conversation.of("v1", "b1", "v2", "b2", "v3", "b3")
    last = only_last(one)
    assert [m.content for m in last.messages if last.is_target(m)] == ["a2"]
    moved = with_history_of(one, two)
    assert [m.content for m in moved.messages] == ["v1", "b1", "v2", "b2", "u2", "a2"]
    assert [m.content for m in moved.messages if moved.is_target(m)] == ["a2"]
    alone = with_history_of(one, None)
    assert [m.content for m in alone.messages] == ["u2", "a2"] and alone.system == "s"


def test_gain_is_the_loss_that_the_true_history_saves() -> None:
    found = gain_of({"true": [(2.0, 2), (4.0, 2)], "shuffled": [(6.0, 2), (6.0, 2)],
                     "none": [(4.0, 2), (4.0, 2)]})  # fmt: skip
    assert found["true"] == 1.5 and found["gain_over_shuffled"] == 1.5
    assert found["gain_over_none"] == 0.5 and found["helped"] == 0.5 and found["dialogues"] == 2
