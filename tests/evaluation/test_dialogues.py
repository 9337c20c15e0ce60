"""mt-recall: what its dialogues hold, and that no family is answered without remembering."""

import collections
import random
from collections.abc import Callable

import pytest

from mindspeed_llm.errors import DataError
from mindspeed_llm.evaluation.dialogues import (
    DISTANCES,
    FAMILIES,
    MAX_DISTRACTORS,
    Dialogue,
    Probe,
    test_set,
    training_set,
)
from mindspeed_llm.evaluation.phrases_held_out import TEST
from mindspeed_llm.evaluation.phrases_train import TRAIN
from mindspeed_llm.evaluation.recall import mentions, score

test_set.__test__ = False  # the function, which pytest would collect


@pytest.fixture(scope="module")
def suite() -> list[Dialogue]:
    return test_set(48, 3)


def told(dialogue: Dialogue, until: int) -> list[str]:
    return [turn.user for turn in dialogue.turns[:until]]


def test_the_same_seed_says_the_same_and_another_one_something_else() -> None:
    assert test_set(6, 1) == test_set(6, 1) != test_set(6, 2)
    assert training_set(8, 1) == training_set(8, 1) != training_set(8, 2)


def test_families_distances_and_distractors_are_all_there(suite: list[Dialogue]) -> None:
    assert collections.Counter(d.family for d in suite) == dict.fromkeys(FAMILIES, 48)
    for family in FAMILIES:
        mine = [d for d in suite if d.family == family]
        assert collections.Counter(d.distance for d in mine) == dict.fromkeys(DISTANCES, 8)
        assert {0, 1, MAX_DISTRACTORS} <= {d.distractors for d in mine}
    assert {2, 32} <= set(DISTANCES)


def test_the_first_question_is_as_far_as_it_says(suite: list[Dialogue]) -> None:
    """What it needs was said `distance` turns before, and not later, except by a distractor."""
    for dialogue in suite:
        first = next(at for at, turn in enumerate(dialogue.turns) if turn.probe)
        probe = dialogue.turns[first].probe
        if dialogue.family == "counting" or probe.rule == "unknown":
            continue
        last = first - dialogue.distance
        assert last >= 0
        needed = probe.expected[0]
        before = told(dialogue, last + 1)
        assert any(mentions(text, needed) for text in before), dialogue
        after = told(dialogue, first)[last + 1 :]
        assert len(after) == dialogue.distance - 1
        assert not any(mentions(text, needed) for text in after), dialogue


def test_a_thing_counted_was_added_at_the_distance_and_none_later(suite: list[Dialogue]) -> None:
    for dialogue in (d for d in suite if d.family == "counting"):
        name = next(name for name in TEST.lists if name in dialogue.turns[-1].user)
        adds = [at for at, turn in enumerate(dialogue.turns[:-1]) if name in turn.user]
        assert str(len(adds)) == dialogue.turns[-1].probe.expected[0]
        assert len(dialogue.turns) - 1 - adds[-1] == dialogue.distance


def test_a_list_grows_by_what_is_added_and_only_its_last_step_is_asked_for(
    suite: list[Dialogue],
) -> None:
    for dialogue in (d for d in suite if d.family == "counting"):
        name = next(name for name in TEST.lists if name in dialogue.turns[-1].user)
        *steps, last, asked = (turn for turn in dialogue.turns if name in turn.user)
        assert [t.probe is not None for t in dialogue.turns].count(True) == 2
        assert last.probe and asked.probe and not any(turn.probe for turn in steps)
        lists = [turn.assistant.removeprefix(f"Your {name}: ")[:-1].split(", ")
                 for turn in (*steps, last)]  # fmt: skip
        assert all(found == lists[-1][: n + 1] for n, found in enumerate(lists))
        assert last.probe.expected == tuple(lists[-1])
        assert lists[-1][-1].lower() in last.user.lower()
        seen = [item for turn in dialogue.turns for item in TEST.items
                if turn not in (*steps, last) and mentions(turn.user, item)]  # fmt: skip
        assert set(seen) & set(TEST.items) - set(lists[-1]) <= set(last.probe.forbidden)


def test_what_was_not_told_is_not_in_the_dialogue(suite: list[Dialogue]) -> None:
    for dialogue in (d for d in suite if d.family == "refusal"):
        rules = [turn.probe.rule for turn in dialogue.turns if turn.probe]
        assert sorted(rules) == ["holds", "unknown"]
        at, turn = next(p for p in enumerate(dialogue.turns)
                        if p[1].probe and p[1].probe.rule == "unknown")  # fmt: skip
        slot = next(s for some in TEST.slots.values() for s in some if s in turn.assistant)
        assert not any(slot in text for text in told(dialogue, at))


def test_markers_are_typed_into_every_dialogue_of_their_family(suite: list[Dialogue]) -> None:
    ends = [marker for pair in TEST.markers for marker in pair]
    for dialogue in suite:
        typed = sum(any(e in turn.user for e in ends) for turn in dialogue.turns)
        assert typed == (0 if dialogue.family != "marker" else 1 + (dialogue.distractors > 0))
        assert not any(e in turn.assistant for e in ends for turn in dialogue.turns)


def test_every_reference_reply_is_right_and_no_probe_forbids_it(suite: list[Dialogue]) -> None:
    for dialogue in (*suite, *training_set(40, 0)):
        replies = [(turn.assistant, True) for turn in dialogue.turns if turn.probe]
        outcome = score(dialogue, replies)
        assert outcome.exact and outcome.value and outcome.stopped
        for turn in dialogue.turns:
            if turn.probe:
                assert turn.probe.answers[0] == turn.assistant
                assert not any(mentions(turn.assistant, v) for v in turn.probe.forbidden)


def test_some_acknowledgements_are_trained_and_no_other_reply_without_a_probe() -> None:
    others = [t for d in training_set(60, 0) for t in d.turns if not t.probe]
    told = [t for t in others if t.assistant in TRAIN.replies]
    assert 0.2 < sum(t.trained for t in told) / len(told) < 0.3
    assert not any(t.trained for t in others if t not in told)


def test_values_change_twice_in_training_and_the_last_one_is_asked_for() -> None:
    changes: collections.Counter[int] = collections.Counter()
    outdated = 0
    for dialogue in training_set(150, 4):
        for slot in (slot for some in TRAIN.slots.values() for slot in some):
            named = [turn for turn in dialogue.turns if f"my {slot}" in turn.user.lower()]
            tells = [turn for turn in named if turn.probe is None]
            asked = named[-1].probe if named else None
            if len(tells) < 2 or asked is None:
                continue
            changes[len(tells) - 1] += 1
            early = [turn.probe.expected for turn in named[:-1] if turn.probe]
            outdated += sum(bool(some) and some != asked.expected for some in early)
            assert any(mentions(tells[-1].user, value) for value in asked.expected)
            assert not any(mentions(turn.user, asked.expected[0]) for turn in tells[:-1])
    assert set(changes) == {1, 2} and changes[2] > changes[1]
    assert outdated > 0.5 * changes.total(), "asked before a change, too"


def test_training_asks_all_families_and_only_replies_to_probes_are_known() -> None:
    dialogues = training_set(60, 0)
    rules = collections.Counter(t.probe.rule for d in dialogues for t in d.turns if t.probe)
    assert set(rules) == {"holds", "count", "opens", "unknown"}
    assert all(d.turns[-1].probe for d in dialogues)
    assert sum(rules.values()) / len(dialogues) > 5


def _share(suite: list[Dialogue], family: str, reply: Callable[[Dialogue, int, Probe], str],
           ) -> float:  # fmt: skip
    mine = [d for d in suite if d.family == family]
    right = 0
    for dialogue in mine:
        said = [(reply(dialogue, at, turn.probe), True)
                for at, turn in enumerate(dialogue.turns) if turn.probe]  # fmt: skip
        right += score(dialogue, said).value
    return right / len(mine)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_constant_answers_a_family(suite: list[Dialogue], family: str) -> None:
    """The reply that suits most of the family's probes, said to each of them."""
    if family == "counting":  # one of four numbers; a small set may have much more of one of them
        suite = test_set(192, 3)
    answers = collections.Counter(
        answer for d in suite if d.family == family for t in d.turns if t.probe
        for answer in (*t.probe.answers, "I do not know.")
    )  # fmt: skip
    best = max(_share(suite, family, lambda d, at, probe, a=answer: a)
               for answer, _ in answers.most_common(40))  # fmt: skip
    assert best <= 0.35  # a number of things on a list is one of four


def _last(dialogue: Dialogue, at: int, probe: Probe) -> str:
    """The value that was mentioned last: of the kind that is asked for, if the probe has values."""
    if probe.rule == "count":
        return str(sum("list" in text for text in told(dialogue, at)[-1:]))
    pool = {
        "opens": TEST.words,
        "holds": [v for some in TEST.values.values() for v in some]
        + [f"{r}'s {e}" for r in TEST.relations for e in TEST.events],
    }.get(probe.rule, [])
    if probe.rule == "holds" and "'s" not in probe.expected[0]:
        pool = [*probe.expected, *probe.forbidden]
    for text in reversed(told(dialogue, at)):
        if found := [value for value in pool if mentions(text, value)]:
            value = max(found, key=text.rfind)
            return f"{value} {probe.expected[1]}" if probe.rule == "opens" else value
    return "I do not know."


@pytest.mark.parametrize("family", FAMILIES)
def test_copying_the_last_value_does_not_answer_a_family(
    suite: list[Dialogue], family: str
) -> None:
    """Right where nothing distracts, which is in a quarter of the dialogues, and hardly else."""
    assert _share(suite, family, _last) <= 0.4
    distracted = [d for d in suite if d.distractors > 0]
    assert _share(distracted, family, _last) <= 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_guessing_among_what_was_told_does_not_answer_a_family(
    suite: list[Dialogue], family: str
) -> None:
    rng = random.Random(0)

    def guess(dialogue: Dialogue, at: int, probe: Probe) -> str:
        if probe.rule == "count":
            return str(rng.randint(2, 5))
        values = [*probe.expected[:1], *probe.forbidden] or ["nothing"]
        if probe.rule == "opens":
            heard = [w for w in TEST.words if any(mentions(t, w) for t in told(dialogue, at))]
            return f"{rng.choice(heard)} {probe.expected[1]}"
        return rng.choice(values)

    # Guessing among everything, distractors or none: a single value is often all there is.
    distracted = [d for d in suite if d.distractors > 1]
    assert _share(distracted, family, guess) <= 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: test_set(0, 0),
        lambda: test_set(4, 0, (1,)),
        lambda: test_set(4, 0, ()),
        lambda: training_set(0, 0),
    ],
)
def test_wrong_sizes_are_named(wrong: Callable[[], object]) -> None:
    with pytest.raises(DataError, match="expected"):
        wrong()
