"""The two parts of the set share nothing that has to be remembered, and no way of saying it."""

import itertools

import pytest

from mindspeed_llm.evaluation.phrases import GUIDE_TURNS, TEST, TRAIN

FIELDS = (
    "slots", "state", "ask", "change", "likes", "like", "ask_like", "verbs", "names",
    "state_verb", "ask_verb", "relations", "events", "things", "need", "ask_reason",
    "acknowledge", "fillers",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_parts_share_no_entry(field: str) -> None:
    train, test = set(getattr(TRAIN, field)), set(getattr(TEST, field))
    assert train and test
    assert not train & test


def test_parts_share_no_value_and_no_distractor() -> None:
    train = set(itertools.chain(*TRAIN.values.values()))
    test = set(itertools.chain(*TEST.values.values()))
    assert not train & test
    turns = [set(itertools.chain(*part.distractors.values())) for part in (TRAIN, TEST)]
    assert not turns[0] & turns[1]


@pytest.mark.parametrize("part", [TRAIN, TEST])
def test_no_value_is_also_a_name_or_said_by_a_filler(part) -> None:
    words = " ".join(itertools.chain(*part.fillers, part.acknowledge)).lower()
    for value in itertools.chain(*part.values.values()):
        assert value not in part.names
        assert f" {value.lower()} " not in f" {words} "


@pytest.mark.parametrize("part", [TRAIN, TEST])
def test_every_kind_of_value_has_values_and_distractors(part) -> None:
    used = {kind for *_, kind in (*part.slots, *part.likes, *part.verbs)}
    assert used == set(part.values)
    assert set(part.distractors) <= set(part.values)
    assert all(len(set(values)) == len(values) >= 5 for values in part.values.values())


def test_guide_is_in_no_training_phrase() -> None:
    train = {user for user, _ in TRAIN.fillers} | set(TRAIN.need) | set(TRAIN.ask_reason)
    assert not train & set(GUIDE_TURNS)
    assert "sister" not in TRAIN.relations and "birthday" not in TRAIN.events
