"""data.jinja_form: what transformers renders with it is what our templates render."""

from __future__ import annotations

import dataclasses
import itertools

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mindspeed_llm.data.chat_template import BOS, EOS
from mindspeed_llm.data.jinja_form import as_jinja
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.mindspeed_templates import MINDSPEED_TEMPLATES
from mindspeed_llm.data.templates import TEMPLATES

TOKENS = {BOS: "<the bos>", EOS: "<the eos>"}
PLAIN = {name: t for name, t in TEMPLATES.items() if as_jinja(t) is not None}
TALKS = [
    dataclasses.replace(Conversation.of(*turns), system=system)
    for turns, system in itertools.product(
        [(" Hi {{ x }}?\n", " yes\n"), ("A", "b", 'say "c"\\n', "d"), ("A", "b", "open")],
        [None, "", " Be brief. "],
    )
]


def ours(template, talk):
    return "".join(TOKENS.get(part.text, part.text) if part.kind == "marker" else part.text
                   for part in template.plan(talk))  # fmt: skip


def theirs(template, talk):
    messages = [{"role": m.role, "content": m.content} for m in talk.messages]
    if talk.system is not None:
        messages.insert(0, {"role": "system", "content": talk.system})
    texts, _ = render_jinja_template(
        [messages], chat_template=as_jinja(template), add_generation_prompt=talk.is_open,
        bos_token=TOKENS[BOS], eos_token=TOKENS[EOS],
    )  # fmt: skip
    return texts[0]


@pytest.mark.parametrize("name", PLAIN)
def test_both_render_the_same(name):
    for talk in TALKS:
        assert theirs(TEMPLATES[name], talk) == ours(TEMPLATES[name], talk)


def test_most_of_the_table_can_be_said():
    assert {"gemma", "chatml", "qwen2.5", "llama2", "llama3", "mistral-v3", "phi3", "alpaca"} <= (
        PLAIN.keys()
    )
    assert as_jinja(TEMPLATES["qwen3"]) is None  # earlier thinking is taken away
    apart = [t for t in MINDSPEED_TEMPLATES.values() if t.apart or t.eos_label]
    assert apart and all(as_jinja(template) is None for template in apart)


def test_a_role_it_does_not_know_is_refused():
    with pytest.raises(jinja2.exceptions.TemplateError, match="knows the roles"):
        render_jinja_template([[{"role": "tool", "content": "x"}]], chat_template=as_jinja(
            TEMPLATES["chatml"]), bos_token="", eos_token="")  # fmt: skip
