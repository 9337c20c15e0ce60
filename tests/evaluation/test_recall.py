"""Scores say what they claim, and files of the wrong shape are named."""

import pytest

from mindspeed_llm.evaluation.dialogues import Dialogue, generate
from mindspeed_llm.evaluation.recall import (
    holds_value,
    is_exact,
    score,
    summary,
    table,
)

FACT = Dialogue(
    turns=(("My cat's name is Mina.", "Got it."), ("Well?", "Your cat's name is Mina.")),
    kind="fact",
    distance=1,
    expected=("Mina",),
    forbidden=("Leon",),
)


@pytest.mark.parametrize(
    "reply,same",
    [("Your cat's name is Mina.", True), (" your cat\u2019s  name is mina", True),
     ("Your cat's name is Mina. Is that right?", False), ("Mina", False), ("", False)],
)  # fmt: skip
def test_exact_match(reply: str, same: bool) -> None:
    assert is_exact(reply, FACT.answer) is same


@pytest.mark.parametrize(
    "reply,expected,forbidden,holds",
    [("It is Mina, I think.", ("Mina",), ("Leon",), True),
     ("Mina or Leon.", ("Mina",), ("Leon",), False),
     ("Minas Tirith", ("Mina",), (), False),
     ("A blackboard", ("black",), (), False),
     ("at 19:20!", ("19:20",), ("9:20",), True),
     ("for your sister's birthday", ("sister", "birthday"), ("father",), True),
     ("for your grandmother's birthday", ("mother",), (), False),
     ("You didn't tell me.", ("did not tell",), ("roses",), True),
     ("I don't know", ("did not tell",), (), False)],
)  # fmt: skip
def test_value_match(reply: str, expected: tuple, forbidden: tuple, holds: bool) -> None:
    assert holds_value(reply, expected, forbidden) is holds


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_right_answer_scores_in_both_ways(part: str) -> None:
    for dialogue in generate(part, 300, 2):
        outcome = score(dialogue, dialogue.answer, stopped=True)
        assert outcome.exact and outcome.value, dialogue


def test_another_dialogues_answer_scores_in_neither() -> None:
    made = [d for d in generate("test", 300, 2) if d.kind == "update"]
    for dialogue in made:
        wrong = dialogue.answer.replace(dialogue.expected[0], dialogue.forbidden[0])
        outcome = score(dialogue, wrong, stopped=True)
        assert not outcome.exact and not outcome.value


def test_summary_counts_by_kind_and_distance() -> None:
    made = generate("test", 72, 4)
    outcomes = [
        score(d, d.answer if d.kind == "fact" or d.distance == 1 else "no", stopped=d.distance > 3)
        for d in made
    ]
    result = summary(outcomes)
    assert result["all"]["dialogues"] == 72
    assert result["kind"]["fact"]["exact"] == 1 and result["distance"]["1"]["value"] == 1
    assert result["kind"]["reason"]["exact"] == pytest.approx(1 / 6)
    assert result["distance"]["2"]["exact"] == pytest.approx(1 / 6)
    assert result["all"]["stopped"] == pytest.approx(1 / 2)
    assert result["kind_and_distance"]["update"]["1"] == {
        "dialogues": 2, "exact": 1, "value": 1, "stopped": 0}  # fmt: skip
    lines = table(result)
    assert len(lines) == 8 and lines[1].split()[:2] == ["fact", "100"]
    assert lines[-1].split()[-1] == "72"
