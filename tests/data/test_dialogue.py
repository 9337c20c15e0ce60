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
    answer = renderer.render(Conversation.of("A?", "a.", system="Be brief.")).ids[len(first) :]
    if renderer.end_id is not None:
        answer = answer[: answer.index(renderer.end_id) + 1]
    thought = renderer.template.think_block.replace("{content}", "")
    assert dialogue.answer(answer) == thought + "a."
    second = dialogue.ask("B <end_of_turn>?")
    if not thought:  # Qwen3 leaves the thinking of earlier answers out
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


def talked(renderer, *questions):
    dialogue = Dialogue(renderer)
    for question in questions:
        dialogue.ask(question)
        dialogue.answer(renderer.tokenizer.encode_text("yes"))
    return dialogue


def test_turns_left_out_come_back_when_later_ones_are_taken_back(renderer_of):
    dialogue = talked(renderer_of("gemma"), "one", "two", "three")
    assert (dialogue.keep_last(1), dialogue.first, dialogue.turns) == (2, 2, 1)
    dialogue.take_back()
    assert (dialogue.first, [turn.user for turn in dialogue.history]) == (1, ["one", "two"])
    assert dialogue.keep_last(5) == 0 and dialogue.turns == 2
    dialogue.take_back()
    dialogue.take_back()
    dialogue.take_back()
    assert dialogue.history == () and dialogue.first == 0


def test_another_answer_has_the_same_prompt(renderer_of):
    dialogue = talked(renderer_of("gemma"), "one")
    prompt = dialogue.ask("two")
    with pytest.raises(TemplateError, match="no answer yet"):
        dialogue.reopen()
    dialogue.answer([5, 6])
    assert dialogue.reopen().answer == [5, 6]
    assert dialogue.is_open and dialogue.prompt() == prompt
    dialogue.clear()
    with pytest.raises(TemplateError, match="no answer yet"):
        dialogue.reopen()


def test_once_turns_must_go_they_go_in_a_batch(renderer_of):
    renderer = renderer_of("gemma")
    dialogue = talked(renderer, *"abcdefgh")
    whole = len(dialogue.ask("i"))
    assert dialogue.fit(whole, 1) == 0, "it fits"
    assert dialogue.fit(whole - 1, whole // 2) >= 4
    assert len(dialogue.prompt()) <= whole // 2 and dialogue.turns > 1
    before = dialogue.first
    with pytest.raises(TemplateError, match="this turn alone"):
        dialogue.fit(3)
    assert dialogue.first == before


def test_restored_turns_make_the_same_prompt(renderer_of):
    renderer = renderer_of("gemma")
    first = talked(renderer, "one", "two", "three")
    first.keep_last(2)
    second = Dialogue(renderer)
    second.restore(first.history, first.first)
    assert second.ask("more") == first.ask("more")
    second.answer([5])
    assert len(first.history) == 4 and first.history[0] is not second.history[0]
