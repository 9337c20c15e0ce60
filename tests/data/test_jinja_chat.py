"""Tests of mindspeed_llm.data.jinja_chat; transformers renders the same templates."""

from __future__ import annotations

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mindspeed_llm.data.jinja_chat import render_blocks, render_chat

TALK = [{"role": "system", "content": "Be <brief> & 'kind'."}, {"role": "user", "content": " A?\n"},
        {"role": "assistant", "content": "b", "tool_calls": None},
        {"role": "user", "content": "\u4f60"}]  # fmt: skip
NAMED = {"bos_token": "<bos>", "eos_token": "<eos>"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": "\u00e9<"}}}]
ODD = (
    "{{ bos_token }}{% for m in messages %}\n"
    "  {%- if loop.index0 == 9 %}{% break %}{% endif %}\n"
    "    {% if m.tool_calls is defined %}!{% endif %}\n"
    "{{ m | tojson }}{{ m.content | trim }}{{ dict(a=1) | tojson(indent=2) }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% endif %}{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    "{% endfor %}{{ tools | tojson if tools else '' }}{{ nothing }}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def theirs(template, **options):
    texts, _ = render_jinja_template([TALK], chat_template=template, **options, **NAMED)
    return texts[0]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_text_is_that_of_transformers(jinja, prompt, tools):
    for template in (*jinja.values(), ODD):
        options = {"add_generation_prompt": prompt, "tools": tools}
        try:
            expected = theirs(template, **options)
        except jinja2.TemplateError as err:
            with pytest.raises(jinja2.TemplateError, match=str(err)):
                render_chat(template, TALK, named=NAMED, **options)
            continue
        assert render_chat(template, TALK, named=NAMED, **options) == expected


def test_blocks_are_those_of_transformers():
    template = ("{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
                "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}"
                "{{ m.content }}{% endif %}{% endfor %}")  # fmt: skip
    talk = [*TALK, {"role": "assistant", "content": ""}, *TALK[1:3]]
    texts, spans = render_jinja_template(
        [talk], chat_template=template, return_assistant_tokens_mask=True, **NAMED
    )
    text, blocks = render_blocks(template, talk, NAMED)
    assert text == texts[0] == render_chat(template, talk, named=NAMED)
    assert blocks == [tuple(span) for span in spans[0]]
    assert text[slice(*blocks[0])] == "b<eos>"


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ render_chat.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ dict.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format('') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_does_not_leave_the_sandbox(escape):
    try:
        text = render_chat(escape, TALK)
    except (jinja2.TemplateError, TypeError):
        return
    assert "class" not in text and "root" not in text and text.strip() == ""


def test_a_template_can_refuse():
    with pytest.raises(jinja2.TemplateError, match="no system"):
        render_chat("{{ raise_exception('no system') }}", TALK)
    with pytest.raises(jinja2.TemplateError):
        render_chat("{% if %}", TALK)
