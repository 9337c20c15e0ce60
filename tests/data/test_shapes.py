"""Tests of mindspeed_llm.data.shapes: the same rows as when each one is planned itself."""

from __future__ import annotations

import random

import pytest

from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.mindspeed_templates import MINDSPEED_TEMPLATES
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.shapes import Shapes
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import Tokenizer

PIECES = ("Hi", " ", "\n", "<end_of_turn>", "<|im_end|>", "\u00e9", "\ue0f41\ue0f5", "{content}",
          "\x00", "0", "</think>")  # fmt: skip
CASES = [(n, None) for n in TEMPLATES] + [(n, "mindspeed") for n in MINDSPEED_TEMPLATES]


def talk(rng: random.Random) -> Conversation:
    def text() -> str:
        return "".join(rng.choices(PIECES, k=rng.choice((0, 1, 2, 5))))

    turns = tuple(Message(role, text(), rng.random() < 0.7)
                  for _ in range(rng.randint(1, 3)) for role in ("user", "assistant"))  # fmt: skip
    system = rng.choice((None, None, "", "Be brief.", " \n"))
    return Conversation(turns, system, rng.random() < 0.3)


def planned(renderer: Renderer, conversation: Conversation):
    spans = renderer._spans(renderer.template.plan(conversation), ())
    return renderer._assemble_alone(spans)


@pytest.mark.parametrize(("name", "compat"), CASES)
def test_rows_are_those_of_the_plan(renderer_of, name, compat):
    renderer = renderer_of(name, compat)
    rng = random.Random(name)
    talks = [talk(rng) for _ in range(150)]
    rows = renderer.render_many(talks)
    assert rows == [planned(renderer, t) for t in talks]
    assert renderer.render_many(talks) == rows  # what was remembered is the same


@pytest.mark.parametrize("name", ["gemma3", "phi3", "llama3"])
def test_rows_are_those_of_the_plan_where_markers_swallow_blanks(rich_tokenizer, name):
    backend = type(rich_tokenizer._text).from_str(rich_tokenizer._text.to_str())
    tokens = [t for t in backend.get_added_tokens_decoder().values() if "|" in t.content]
    spec = backend.to_str()
    for token in tokens:
        spec = spec.replace(f'"content":"{token.content}","single_word":false,"lstrip":false,'
                            '"rstrip":false', f'"content":"{token.content}","single_word":false,'
                            '"lstrip":false,"rstrip":true')  # fmt: skip
    odd = Tokenizer(type(backend).from_str(spec), bos_token="<bos>", eos_token="<eos>")
    assert odd.strips or name == "gemma3"
    renderer = Renderer(odd, find_template(name))
    rng = random.Random(name)
    talks = [talk(rng) for _ in range(150)]
    assert renderer.render_many(talks) == [planned(renderer, t) for t in talks]


def test_a_shape_is_made_once(renderer_of):
    renderer = renderer_of("gemma3")
    plans: list[Conversation] = []

    def plan(conversation):
        plans.append(conversation)
        return renderer._spans(renderer.template.plan(conversation), ())

    shapes = Shapes(renderer.template, plan, renderer.tokenizer.encode_text, False)
    for question in ("A?", "\ue0f41\ue0f5", "a longer question"):
        shape, contents = shapes.find(Conversation.of(question, " b ", system="S"))
        assert contents == ["S", question, "b"]
        assert shape.texts(contents)[0].endswith(f"S\n\n{question}")
        ids, labels = shape.fill([[7, 8], [9]])
        assert [i for i in ids if i in (7, 8, 9)] == [7, 8, 9] and 9 in labels and 7 not in labels
        assert all(label in (i, IGNORE) for i, label in zip(ids, labels, strict=True))
    assert len(plans) == 1
    assert "a longer question" not in plans[0].messages[0].content


def test_what_depends_on_the_contents_has_no_shape(renderer_of):
    def find(name, conversation):
        renderer = renderer_of(name)
        return renderer._shapes.find(conversation)

    assert find("gemma3", Conversation.of("A?", "b.")) is not None
    assert find("gemma3", Conversation.of("A?", " \n")) is None  # an empty text has no tokens
    assert find("qwen3", Conversation.of("A?", "b.")) is None  # thinking is looked for in answers
    assert find("llama2", Conversation.of("A?", "b.", system="S")) is None  # stripped together
