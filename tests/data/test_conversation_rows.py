"""Tests of mindspeed_llm.data.conversation_rows: what becomes of one row, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.conversation_rows import ConversationRows
from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.data.report import KEPT, OVER_LENGTH, REPAIRED, TRUNCATED
from mindspeed_llm.data.sources import make_source

SHAREGPT = "SharegptStyleInstructionHandler"


@pytest.fixture
def rows_of(renderer_of):
    def make(template="gemma", **changes):
        config = PreprocessConfig(
            input=("a",), tokenizer_name_or_path=Path("t"), output_prefix=Path("o"),
            prompt_type=template, handler_name=SHAREGPT, **changes)  # fmt: skip
        return ConversationRows(make_source(SHAREGPT, None), renderer_of(template), config)

    return make


def row(*turns, **marks):
    names = {"u": "human", "a": "gpt", "s": "system"}
    return {"conversations": [
        {"from": names[t[0]], "value": t[1:], **({"loss": marks[t]} if t in marks else {})}
        for t in turns]}  # fmt: skip


def targets(maker, made):
    """Texts that are trained, as the model is asked to say them."""
    end = maker.renderer.template.end
    return [
        text for piece in made.pieces
        for text in maker.tokenizer.decode([i for i in piece.labels if i != IGNORE]).split(end)
        if text
    ]  # fmt: skip


def one(maker, given):
    return maker.make([maker.take(given)])[0]


def test_a_row_that_is_right_is_kept(rows_of):
    maker = rows_of()
    made = one(maker, row("uOne?", "a1.", "uTwo?", "a2."))
    assert made.outcome == KEPT and targets(maker, made) == ["1.", "2."]


def test_turns_are_repaired_or_refused(rows_of):
    given = row("aHi.", "uOne?", "uMore.", "a1.", "uBye.")
    maker = rows_of()
    made = one(maker, given)
    assert made.outcome == REPAIRED and len(made.repairs) == 3 and targets(maker, made) == ["1."]
    with pytest.raises(RowError, match="role"):
        rows_of(role_order="reject").take(given)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["1.", "2.", "3."]),
        ({"train_on": "last"}, ["3."]),
        ({"train_on_inputs": True}, ["One?", "1.", "Two?", "2.", "Three?", "3."]),
    ],
)
def test_targets(rows_of, changes, expected):
    maker = rows_of(**changes)
    given = row("uOne?", "a1.", "uTwo?", "a2.", "uThree?", "a3.")
    assert targets(maker, one(maker, given)) == expected


def test_messages_decide_for_themselves(rows_of):
    maker = rows_of(train_on="none")
    given = row("uOne?", "a1.", "uTwo?", "a2.", **{"a1.": True})
    assert targets(maker, one(maker, given)) == ["1."]
    with pytest.raises(RowError) as caught:  # T18: all answers masked
        maker.take(row("uOne?", "a1."))
    assert caught.value.kind == "no target"


LONG = row("sBe kind.", "uOne?", "a1.", "uTwo?", "a2.", "uThree?", "a3.")


def length(maker, given):
    return sum(len(piece.ids) for piece in one(maker, given).pieces)


@pytest.mark.parametrize("policy", ["oldest-turns", "newest-turns"])
@pytest.mark.parametrize("train_on", ["all", "last"])
def test_whole_turns_go_and_the_last_answer_left_is_trained(rows_of, policy, train_on):
    """T9: the system text stays, every answer keeps its header and its end."""
    whole = length(rows_of("chatml"), LONG)
    limit = whole - 1
    maker = rows_of("chatml", seq_length=limit, truncation=policy, train_on=train_on)
    made = one(maker, LONG)
    assert (made.outcome, made.turns) == (TRUNCATED, 2) and made.tokens > 0
    left = ["2.", "3."] if policy == "oldest-turns" else ["1.", "2."]
    assert targets(maker, made) == (left if train_on == "all" else left[-1:])
    (piece,) = made.pieces
    text = maker.tokenizer.decode(piece.ids)
    assert "Be kind." in text and len(piece.ids) <= limit
    assert text.count("<|im_start|>assistant\n") == text.count("<|im_end|>\n") // 2 == 2


def test_an_exact_fit_is_kept_and_one_more_token_is_not(rows_of):
    whole = length(rows_of(), LONG)
    assert one(rows_of(seq_length=whole), LONG).outcome == KEPT
    for policy in ("drop", "error"):
        made = one(rows_of(seq_length=whole - 1, truncation=policy), LONG)
        assert isinstance(made, RowError) and made.kind == OVER_LENGTH
    made = one(rows_of(seq_length=8, truncation="oldest-turns"), LONG)
    assert isinstance(made, RowError) and made.kind == OVER_LENGTH


def test_truncation_that_leaves_no_target_leaves_the_row_out(rows_of):
    given = row("uOne?", "a1.", "uTwo?", "a2.", **{"a2.": False})
    whole = length(rows_of(), given)
    made = one(rows_of(seq_length=whole - 1, truncation="oldest-turns"), given)
    assert isinstance(made, RowError) and made.kind == OVER_LENGTH
    maker = rows_of(seq_length=whole - 1, truncation="newest-turns")
    assert targets(maker, one(maker, given)) == ["1."]


def test_repaired_and_truncated_counts_as_truncated(rows_of):
    given = row("uOne?", "a1.", "uTwo?", "uThree?", "a3.")
    whole = length(rows_of(), given)
    made = one(rows_of(seq_length=whole - 1, truncation="oldest-turns"), given)
    assert made.outcome == TRUNCATED and len(made.repairs) == 1


def test_names_for_the_manifest(rows_of):
    maker = rows_of()
    assert (
        maker.template == "gemma" and maker.fingerprint() == maker.renderer.template.fingerprint()
    )
