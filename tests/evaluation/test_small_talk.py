"""Practice and test of ordinary talk share no question, and memory dialogues use neither."""

from mindspeed_llm.evaluation.phrases import GUIDE_TURNS, TEST, TRAIN
from mindspeed_llm.evaluation.small_talk import ORDINARY, PRACTICE

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
