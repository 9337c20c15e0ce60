"""Scores of replies: exact, right in other words, wrong; and their tables."""

import pytest

from mindspeed_llm.evaluation.dialogues import Dialogue, Probe, Turn
from mindspeed_llm.evaluation.recall import (
    holds_value,
    is_exact,
    mentions,
    normalised,
    score,
    summary,
    table,
)

CODE = Probe(answers=("Your gate code is 4182.", "4182"), rule="holds", expected=("4182",),
             forbidden=("2964", "7350"))  # fmt: skip
PIE = Probe(answers=("Anna bakes apple pie.",), rule="holds", expected=("apple pie",),
            forbidden=("plum cake",))  # fmt: skip
COUNT = Probe(answers=("Tea, jam and rope: that makes 3.",), rule="count", expected=("3",))
OPENS = Probe(answers=("Ember: all is well.",), rule="opens", expected=("ember", "all is well"))
UNKNOWN = Probe(answers=("You did not tell me your room number.",), rule="unknown", expected=(),
                forbidden=("4182",))  # fmt: skip


@pytest.mark.parametrize(
    "reply,right",
    [("Your gate code is 4182.", True), ("your gate code  is 4182", True), ("4182", True),
     ("**Your gate code is 4182!**", True), ("The gate code is 4182.", False),
     ("Your gate code is 4183.", False), ("Your gate code is 4182. Anything else?", False),
     ("", False)],
)  # fmt: skip
def test_exact_is_the_answer_but_for_case_and_punctuation(reply: str, right: bool) -> None:
    assert is_exact(reply, CODE.answers) is right


def test_apostrophes_stay_inside_words() -> None:
    assert (
        normalised("The dog\N{RIGHT SINGLE QUOTATION MARK}s  name: 'Rosa'.")
        == "the dog's name rosa"
    )
    assert mentions("apple pie, of course", "Apple pie") and not mentions(
        "pineapple pie", "apple pie"
    )


@pytest.mark.parametrize(
    "probe,reply,right",
    [
        (CODE, "As you told me, it is 4182.", True),
        (CODE, "It is 41821.", False),
        (CODE, "It is 4182 or 2964.", False),
        (CODE, "It was 7350.", False),
        (CODE, "I do not know.", False),
        (PIE, "She bakes an apple pie!", True),
        (PIE, "She bakes apple cake.", False),
        (PIE, "Apple pie, and Tom bakes plum cake.", False),
        (COUNT, "There are 3 things on it.", True),
        (COUNT, "You have three.", True),
        (COUNT, "1. tea 2. jam 3. rope", True),
        (COUNT, "There are 4: tea, jam and rope.", False),
        (COUNT, "3 or 4.", False),
        (COUNT, "Tea, jam and rope.", False),
        (OPENS, "Ember, all is well!", True),
        (OPENS, "ember all is well", True),
        (OPENS, "All is well, ember.", False),
        (OPENS, "All is well.", False),
        (OPENS, "Ember.", False),
        (OPENS, "Embers: all is well.", False),
        (UNKNOWN, "I don't know your room number.", True),
        (UNKNOWN, "You haven't told me that yet.", True),
        (UNKNOWN, "It was not mentioned.", True),
        (UNKNOWN, "Your room number is 4182.", False),
        (UNKNOWN, "You did not tell me, perhaps 4182.", False),
        (UNKNOWN, "Your room number is 12.", False),
        (UNKNOWN, "", False),
    ],
)
def test_the_rules(probe: Probe, reply: str, right: bool) -> None:
    assert holds_value(reply, probe) is right


def dialogue(family: str = "fact", distance: int = 2, distractors: int = 0,
             probes: tuple[Probe, ...] = (CODE,)) -> Dialogue:  # fmt: skip
    turns = [Turn(user="Hello.", assistant="Hello.")]
    turns += [Turn(user="?", assistant=probe.answers[0], probe=probe) for probe in probes]
    return Dialogue(turns=tuple(turns), family=family, distance=distance, distractors=distractors)


@pytest.mark.parametrize(
    "replies,exact,value,stopped",
    [
        ((("4182", True), ("You did not tell me your room number.", True)), True, True, True),
        ((("It is 4182", True), ("I do not know.", True)), False, True, True),
        ((("I do not know.", True), ("I do not know.", True)), False, False, True),
        ((("4182", True), ("4182", False)), False, False, False),
    ],
)
def test_a_dialogue_is_right_if_all_its_replies_are(
    replies: tuple[tuple[str, bool], ...], exact: bool, value: bool, stopped: bool
) -> None:
    outcome = score(dialogue("refusal", probes=(CODE, UNKNOWN)), replies)
    assert (outcome.exact, outcome.value, outcome.stopped) == (exact, value, stopped)


def test_a_reply_for_every_probe_or_none() -> None:
    with pytest.raises(ValueError, match="argument"):
        score(dialogue(probes=(CODE, UNKNOWN)), [("4182", True)])


def test_families_weigh_the_same_in_the_mean() -> None:
    right, wrong = [("4182", True)], [("2964", False)]
    outcomes = [score(dialogue(distance=d), right) for d in (2, 2, 4)]
    outcomes.append(score(dialogue("marker", distance=4, distractors=3), wrong))
    found = summary(outcomes)
    assert found["all"]["exact"] == 0.75 and found["mean"]["exact"] == 0.5
    assert found["mean"]["stopped"] == 0.5
    assert found["family"]["marker"] == {"dialogues": 1, "exact": 0, "value": 0, "stopped": 0}
    assert found["distance"]["4"]["exact"] == 0.5 and found["distance"]["2"]["dialogues"] == 2
    assert found["distractors"]["3"]["exact"] == 0 and found["distractors"]["0"]["dialogues"] == 3
    assert found["family_and_distance"]["marker"]["2"]["dialogues"] == 0
    lines = [line.split() for line in table(found)]
    assert lines[0] == ["exact,", "%", "d=2", "d=4", "all", "value", "n"]
    assert ["fact", "100", "100", "100.0", "100.0", "3"] in lines
    assert ["marker", "-", "0", "0.0", "0.0", "1"] in lines
    assert lines[-1] == ["mean", "100", "50", "50.0", "50.0", "4"]
