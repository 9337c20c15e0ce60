"""Tests of mindspeed_llm.data.render: ids, labels and prompts, over every template."""

from __future__ import annotations

import dataclasses
import random

import pytest

from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import TemplateError

TALK = Conversation.of("A?", "a.", "B?", "b.")
PIECES = ("hello", " ", "\n", "\n\n", "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<bos>", "é",
          "\U0001f600", "{content}", "{{idx}}", "\x00", "\r\n", "<|im_start|>user\n",
          "0")  # fmt: skip


def tokens(renderer, rendered):
    return [renderer.tokenizer.token(i) + ("*" if label != IGNORE else "")
            for i, label in zip(*rendered, strict=True)]  # fmt: skip


def random_talk(rng: random.Random) -> Conversation:
    turns = [
        Message(role, "x" + "".join(rng.choices(PIECES, k=rng.randint(0, 6))), rng.random() < 0.8)
        for _ in range(rng.randint(1, 4)) for role in ("user", "assistant")]  # fmt: skip
    return Conversation(tuple(turns), rng.choice((None, "", "Be <|im_end|> brief.\n")))


def test_golden_gemma(renderer_of):
    renderer = renderer_of("gemma")
    assert tokens(renderer, renderer.render(TALK)) == [
        "<bos>", "<start_of_turn>", "user", "Ċ", "A", "?", "<end_of_turn>", "Ċ", "<start_of_turn>",
        "model", "Ċ", "a*", ".*", "<end_of_turn>*", "Ċ",
        "<start_of_turn>", "user", "Ċ", "B", "?", "<end_of_turn>", "Ċ", "<start_of_turn>",
        "model", "Ċ", "b*", ".*", "<end_of_turn>*", "Ċ"]  # fmt: skip


def test_golden_chatml(renderer_of):
    renderer = renderer_of("chatml")
    assert tokens(renderer, renderer.render(TALK)) == [
        "<|im_start|>", "user", "Ċ", "A", "?", "<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ",
        "a*", ".*", "<|im_end|>*", "Ċ", "<|im_start|>", "user", "Ċ", "B", "?", "<|im_end|>", "Ċ",
        "<|im_start|>", "assistant", "Ċ", "b*", ".*", "<|im_end|>*", "Ċ"]  # fmt: skip


def test_golden_llama3(renderer_of):
    renderer = renderer_of("llama3")
    assert tokens(renderer, renderer.render(TALK)) == [
        "<bos>", "<|start_header_id|>", "user", "<|end_header_id|>", "ĊĊ", "A", "?", "<|eot_id|>",
        "<|start_header_id|>", "assistant", "<|end_header_id|>", "ĊĊ", "a*", ".*", "<|eot_id|>*",
        "<|start_header_id|>", "user", "<|end_header_id|>", "ĊĊ", "B", "?", "<|eot_id|>",
        "<|start_header_id|>", "assistant", "<|end_header_id|>", "ĊĊ",
        "b*", ".*", "<|eot_id|>*"]  # fmt: skip


def test_an_answer_never_merges_with_what_precedes_it(renderer_of):
    renderer = renderer_of("chatml")
    rendered = renderer.render(Conversation.of("A?", "\nHi"))
    assert tokens(renderer, rendered)[-6:] == ["assistant", "Ċ", "Ċ*", "Hi*", "<|im_end|>*", "Ċ"]
    # A whole-text encoding does merge the two line ends, which generation never sees.
    whole = renderer.tokenizer.hf.tokenize("assistant\n\nHi")
    assert whole == ["assistant", "ĊĊ", "Hi"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_hold_exactly_the_answers_and_their_end(name, renderer_of):
    renderer = renderer_of(name)
    template = TEMPLATES[name]
    rng = random.Random(7)
    for _ in range(60):
        talk = random_talk(rng)
        ids, labels = renderer.render(talk)
        assert len(ids) == len(labels)
        assert all(label in (IGNORE, i) for i, label in zip(ids, labels, strict=True))
        assert labels[0] == IGNORE
        answers = [m for m in talk.messages if m.role == "assistant"]
        expected = []
        for m in answers:
            if m.train:
                text = m.content.strip() if template.trim else m.content
                expected += [*renderer.tokenizer.encode_text(text), renderer.end_id]
        assert [label for label in labels if label != IGNORE] == expected
        assert ids.count(renderer.end_id) == _ends(template, talk)


def _ends(template, talk) -> int:
    system = bool(template.system) and (
        talk.system is not None or template.default_system is not None
    )
    return len(talk.messages) + int(system)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_prefix_that_training_saw(name, renderer_of):
    renderer = renderer_of(name)
    rng = random.Random(11)
    for _ in range(40):
        talk = random_talk(rng)
        ids, _ = renderer.render(talk)
        for turn in range(0, len(talk.messages), 2):
            prompt = renderer.prompt(dataclasses.replace(talk, messages=talk.messages[: turn + 1]))
            assert ids[: len(prompt)] == prompt
            text = talk.messages[turn + 1].content
            answer = renderer.tokenizer.encode_text(text.strip() if TEMPLATES[name].trim else text)
            after = ids[len(prompt) : len(prompt) + len(answer) + 1]
            assert after == [*answer, renderer.end_id]


def test_special_text_of_a_user_changes_neither_turns_nor_labels(renderer_of):
    renderer = renderer_of("gemma")
    ids, labels = renderer.render(Conversation.of("x <end_of_turn> y", "a."))
    assert ids.count(renderer.end_id) == 2
    assert "x <end_of_turn> y" in renderer.tokenizer.decode(ids)
    assert sum(label != IGNORE for label in labels) == 3


def test_many_at_once_equal_one_by_one(renderer_of, tokenizer):
    rng = random.Random(3)
    talks = [random_talk(rng) for _ in range(50)]
    fresh = Renderer(tokenizer, find_template("qwen"))
    together = fresh.render_many(talks)
    assert together == [renderer_of("qwen").render(talk) for talk in talks]


def test_the_cache_of_texts_stays_small(tokenizer):
    renderer = Renderer(tokenizer, find_template("chatml"))
    for start in range(0, 9000, 1000):
        renderer.render_many([Conversation.of(f"q{i}", "a") for i in range(start, start + 1000)])
    assert len(renderer._cache) <= 4096 + 2000


def test_kept_ids_replace_the_encoding_of_an_answer(renderer_of):
    renderer = renderer_of("gemma")
    odd = [renderer.tokenizer.encode_text("a")[0]] * 3  # what no encoding of "a." gives
    prompt = renderer.prompt(Conversation.of("A?", "a.", "B?"), [odd])
    first = renderer.prompt(Conversation.of("A?"))
    assert prompt[: len(first) + 4] == [*first, *odd, renderer.end_id]


def test_a_prompt_needs_a_question(renderer_of):
    with pytest.raises(TemplateError, match="ends with the user's turn"):
        renderer_of("gemma").prompt(TALK)


def test_stop_ids_are_end_of_turn_and_every_eos(make_tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", generation_eos=[1, 10]))
    renderer = Renderer(tokenizer, find_template("gemma"))
    assert renderer.stop_ids == (tokenizer.token_id("<end_of_turn>"), 1, 10)
    assert renderer.without_stop([50, 51, 10, 52]) == [50, 51]
    assert renderer.without_stop([50, 51]) == [50, 51]


def test_a_template_of_another_model_is_refused(make_tokenizer_dir, tmp_path):
    plain = make_tokenizer_dir(tmp_path / "t", markers=("<pad>", "<eos>", "<bos>"))
    with pytest.raises(TemplateError, match="not one token"):
        Renderer(load_tokenizer(plain), find_template("gemma"))


def test_a_missing_bos_is_refused(make_tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", bos=None))
    with pytest.raises(TemplateError, match="BOS"):
        Renderer(tokenizer, find_template("gemma")).render(TALK)
    Renderer(tokenizer, find_template("chatml")).render(TALK)


@pytest.mark.parametrize("name", ["gemma", "gemma3", "chatml", "llama3"])
def test_user_turns_can_be_targets_without_their_headers(renderer_of, name):
    renderer = renderer_of(name)
    talk = Conversation.of("\n  Hi there?", "Hello.", "And you?", "Well.", system="Be kind.")
    plain = renderer.render(talk)
    both = renderer.render(dataclasses.replace(talk, train_inputs=True))
    assert both.ids == plain.ids
    assert all(label in (IGNORE, i) for label, i in zip(both.labels, both.ids, strict=True))
    added = [new for old, new in zip(plain.labels, both.labels, strict=True) if old != new]
    text = renderer.tokenizer.decode(added, skip_special_tokens=False)
    ends = text.split(renderer.template.end)
    assert ends[0].strip().endswith("Hi there?") and ends[1:] == ["And you?", ""]
    assert "user" not in text and "kind" not in text
    silent = dataclasses.replace(talk.messages[0], train=False)
    some = dataclasses.replace(talk, messages=(silent, *talk.messages[1:]), train_inputs=True)
    assert "Hi there" not in renderer.tokenizer.decode(
        [label for label in renderer.render(some).labels if label != IGNORE]
    )
