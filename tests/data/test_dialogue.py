"""Tests of mindspeed_llm.data.dialogue."""

from __future__ import annotations

import pytest

from mindspeed_llm.data.dialogue import Dialogue
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.templates import TEMPLATES
from mindspeed_llm.errors import TemplateError


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_equal_training_and_grow_by_appending(name, renderer_of):
    renderer = renderer_of(name)
    dialogue = Dialogue(renderer, "Be brief.")
    first = dialogue.ask("A?")
    answer = [*renderer.tokenizer.encode_text("a."), renderer.end_id]
    assert dialogue.answer(answer) == "a."
    second = dialogue.ask("B <end_of_turn>?")
    assert second[: len(first) + len(answer)] == first + answer
    talk = Conversation.of("A?", "a.", "B <end_of_turn>?", "b.", system="Be brief.")
    assert renderer.render(talk).ids[: len(second)] == second


def test_generated_ids_are_kept_though_no_encoding_gives_them(renderer_of):
    renderer = renderer_of("chatml")
    letters = [renderer.tokenizer.encode_text(c)[0] for c in "Hello"]
    assert letters != renderer.tokenizer.encode_text("Hello")
    dialogue = Dialogue(renderer)
    first = dialogue.ask("A?")
    dialogue.answer(letters)  # cut off by a length limit: no stop id
    assert dialogue.ask("B?")[len(first) :][: len(letters) + 1] == [*letters, renderer.end_id]


@pytest.mark.parametrize("name", ["gemma", "llama3", "qwen"])
def test_dropping_turns_keeps_the_system_text(name, renderer_of):
    renderer = renderer_of(name)
    dialogue = Dialogue(renderer, "Be brief.")
    for question in ("one", "two"):
        dialogue.ask(question)
        dialogue.answer(renderer.tokenizer.encode_text(f"answer {question}"))
    dialogue.ask("three")
    assert dialogue.keep_last(2) == 1
    expected = Conversation.of("two", "answer two", "three", system="Be brief.")
    assert dialogue.prompt() == renderer.prompt(expected)
    assert dialogue.keep_last(5) == 0


def test_fitting_drops_whole_turns_and_never_cuts_the_last(renderer_of):
    renderer = renderer_of("gemma")
    dialogue = Dialogue(renderer)
    for question in ("one", "two", "three"):
        dialogue.ask(question)
        dialogue.answer(renderer.tokenizer.encode_text("yes"))
    dialogue.ask("four")
    wanted = renderer.prompt(Conversation.of("three", "yes", "four"))
    assert dialogue.fit(len(wanted)) == 2
    assert dialogue.prompt() == wanted
    with pytest.raises(TemplateError, match="this turn alone"):
        dialogue.fit(3)


def test_order_of_calls_is_held(renderer_of):
    dialogue = Dialogue(renderer_of("gemma"))
    with pytest.raises(TemplateError, match="no turn to answer"):
        dialogue.answer([5])
    dialogue.ask("A?")
    with pytest.raises(TemplateError, match="no answer yet"):
        dialogue.ask("B?")
    dialogue.take_back()
    assert dialogue.turns == 0
    dialogue.ask("B?")
    dialogue.clear()
    assert dialogue.turns == 0
