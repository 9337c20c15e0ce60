"""Practice and test of ordinary talk share no question, and memory dialogues use neither."""

import random

from mindspeed_llm.evaluation.phrases import GUIDE_TURNS
from mindspeed_llm.evaluation.phrases_held_out import TEST
from mindspeed_llm.evaluation.phrases_train import TRAIN
from mindspeed_llm.evaluation.small_talk import ORDINARY, PRACTICE, service_talk

TESTED = {user for turns in ORDINARY for user, _ in turns}
PRACTISED = set(PRACTICE)


def test_nothing_is_asked_twice_and_nothing_tested_is_trained() -> None:
    fillers = {user for part in (TRAIN, TEST) for user, _ in part.fillers}
    assert len(PRACTISED) == len(PRACTICE) >= 60
    assert not PRACTISED & (TESTED | fillers | set(GUIDE_TURNS))
    assert not TESTED & (fillers | set(GUIDE_TURNS))


def test_answers_are_whole_sentences_and_no_two_the_same() -> None:
    answers = [answer for turns in ORDINARY for _, answer in turns]
    assert len(set(answers)) == len(answers)
    assert all(answer[0].isupper() and answer[-1] in ".!?" for answer in answers)


def test_practice_names_no_value_of_the_test_part() -> None:
    said = " ".join(PRACTICE).lower()
    relations = [f" {word}" for word in TEST.relations]
    assert not [word for word in (*relations, *TEST.events) if word.lower() in said]


def test_talk_with_a_service_is_drawn_from_its_seed_and_shares_nothing_with_the_test() -> None:
    talk = service_talk(100, random.Random(3))
    assert talk == service_talk(100, random.Random(3)) != service_talk(100, random.Random(4))
    assert len(talk) == 100 and len(set(talk)) > 95
    turns = [turn for turns in talk for turn in turns]
    assert not any("{" in text or text[0].islower() for turn in turns for text in turn)
    assert not TESTED & {user for user, _ in turns}
    said = " ".join(text for turn in turns for text in turn).lower()
    assert not [name for name in (*TEST.slots["number"], *TEST.lists) if name in said]
