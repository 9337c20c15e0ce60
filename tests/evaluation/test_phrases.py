"""The two parts of mt-recall share no word that has to be remembered, and no phrasing."""

import dataclasses
from string import Formatter

import pytest

from mindspeed_llm.evaluation.phrases import Phrases
from mindspeed_llm.evaluation.phrases_held_out import TEST
from mindspeed_llm.evaluation.phrases_train import TRAIN

FIELDS = [field.name for field in dataclasses.fields(Phrases)]


def texts(phrases: Phrases, name: str) -> set[str]:
    """Everything the attribute says, in lower case."""
    value = getattr(phrases, name)
    if isinstance(value, dict):
        return {text.lower() for some in value.values() for text in some}
    return {part.lower() for item in value for part in ([item] if isinstance(item, str) else item)}


# Kinds of value ("food") are names of the suite, not words of a dialogue.
@pytest.mark.parametrize("name", [name for name in FIELDS if name != "verbs"])
def test_no_text_is_in_both_parts(name: str) -> None:
    assert not texts(TRAIN, name) & texts(TEST, name)


def test_no_verb_is_in_both_parts() -> None:
    train, test = ({word for verb in p.verbs for word in verb[:2]} for p in (TRAIN, TEST))
    assert not train & test


def test_no_item_moves_from_one_role_to_another() -> None:
    """A value of one part is not a name, an item or a code word of the other."""
    roles = ("values", "slots", "women", "men", "items", "words", "says", "relations", "events",
             "things", "lists")  # fmt: skip
    train, test = ({t for name in roles for t in texts(p, name)} for p in (TRAIN, TEST))
    assert not train & test


@pytest.mark.parametrize("part", [TRAIN, TEST])
def test_templates_have_the_fields_they_are_filled_with(part: Phrases) -> None:
    fields = {
        "state": {"slot", "value"}, "ask": {"slot"}, "change": {"slot", "value"},
        "need": {"relation", "event", "thing"}, "ask_reason": {"thing"},
        "state_verb": {"name", "verb", "value"}, "add": {"item", "list"}, "seen": {"item"},
        "ask_count": {"list"}, "rule": {"word"}, "hears": {"word"}, "repeat": {"text"},
        "paste": {"fake"},
    }  # fmt: skip

    def found(template: str) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(template) if name}

    for name, wanted in fields.items():
        for template in getattr(part, name):
            assert found(template) == wanted, (name, template)
    for template in (*part.ask_verb, *part.ask_she, *part.ask_he):
        assert len(found(template) & {"verb", "base"}) == 1
    for template in part.broken:
        assert "statement" in found(template) and found(template) & {"end", "start"}
    for kind, templates in part.mentions.items():
        assert kind in part.values and all(found(t) == {"value"} for t in templates)
    assert set(part.slots) <= set(part.values)
    assert {kind for _, _, kind in part.verbs} <= set(part.values)
