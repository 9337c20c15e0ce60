"""Tests of mindspeed_llm.data.tool_form; the oracle is transformers with Qwen's rules as jinja."""

from __future__ import annotations

import pytest

from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.messages import Conversation, RowError
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.tool_form import ToolForm, find_tool_form, read_calls, read_tools

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"x": "\u00e9"}}},
         {"type": "function", "function": {"name": "put", "parameters": {}}}]  # fmt: skip
ARGUMENTS = {"x": [1, None, True, '\u00e9 <b> & "q"']}
# The same rules told once more, as a chat template: what stands where, piece by piece.
JINJA = """
{%- set ns = namespace(system=DEFAULT, rest=messages) -%}
{%- if messages[0].role == 'system' -%}
  {%- set ns.system = messages[0].content -%}{%- set ns.rest = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if ns.system is not none -%}{{- ns.system + '\n\n' -}}{%- endif -%}
  {{- TOOLS_HEAD -}}
  {%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
  {{- TOOLS_TAIL + '<|im_end|>\n' -}}
{%- elif ns.system is not none -%}
  {{- '<|im_start|>system\n' + ns.system + '<|im_end|>\n' -}}
{%- endif -%}
{%- for m in ns.rest -%}
  {%- if m.role == 'tool' -%}
    {%- if ns.rest[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}
    {%- if loop.last or ns.rest[loop.index0 + 1].role != 'tool' -%}
      {{- '<|im_end|>\n' -}}
    {%- endif -%}
  {%- else -%}
    {{- '<|im_start|>' + m.role -}}
    {%- if m.content -%}{{- '\n' + m.content -}}{%- endif -%}
    {%- for call in m.tool_calls or [] -%}
      {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def jinja(default: str | None) -> str:
    head, tail = ToolForm().system(None, [1]).split("\n1\n")
    names = {"DEFAULT": "none" if default is None else repr(default), "TOOLS_HEAD": repr(head),
             "TOOLS_TAIL": repr("\n" + tail)}  # fmt: skip
    text = JINJA
    for name, value in names.items():
        text = text.replace(name, value)
    return text


@pytest.fixture
def tokenizer_of(tmp_path, make_tokenizer_dir):
    return lambda text: load_tokenizer(make_tokenizer_dir(tmp_path / "t", chat_template=text))


def structured(system):
    call = {"type": "function", "function": {"name": "look", "arguments": ARGUMENTS}}
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, call]},
        {"role": "tool", "content": '{"a": 1}'}, {"role": "tool", "content": "R"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "S"}, {"role": "assistant", "content": "There."},
    ]  # fmt: skip
    return ([] if system is None else [{"role": "system", "content": system}]) + messages


def flat(form, system, tools):
    call = ("look", ARGUMENTS)
    results = "\n".join((form.result('{"a": 1}'), form.result("R")))
    return Conversation.of("Where?", form.calls("Let me see.", [call, call]), results,
                           form.calls("", [call]), form.result("S"), "There.",
                           system=form.system(system, tools))  # fmt: skip


@pytest.mark.parametrize("name", ["chatml", "qwen", "qwen2.5"])
@pytest.mark.parametrize("system", [None, "S"])
@pytest.mark.parametrize("tools", [TOOLS, []])
def test_text_and_ids_are_those_of_the_tokenizers_own_template(tokenizer_of, name, system, tools):
    template = find_template(name)
    tokenizer = tokenizer_of(jinja(template.default_system))
    form = find_tool_form(template, tokenizer)
    theirs = tokenizer.hf.apply_chat_template(structured(system), tools=tools or None,
                                              tokenize=False)  # fmt: skip
    ours = Renderer(tokenizer, template).render(flat(form, system, tools))
    assert tokenizer.decode(ours.ids) == theirs
    own = HfChatTemplate(tokenizer)
    assert find_tool_form(own, tokenizer) == form
    assert Renderer(tokenizer, own).render(flat(form, system, tools)).ids == ours.ids


def test_templates_without_a_form(tokenizer_of, jinja):
    for name, template in TEMPLATES.items():
        known = name in ("chatml", "qwen", "qwen2.5", "qwen3")
        assert (find_tool_form(template, None) is not None) == known
    for text in (jinja["gemma"], jinja["llama3"], jinja["chatml"]):
        tokenizer = tokenizer_of(text)
        assert find_tool_form(HfChatTemplate(tokenizer), tokenizer) is None


def test_thinking_before_a_call_is_refused_where_it_would_be_hidden():
    form = ToolForm(closing="</think>")
    assert form.calls("Let me see.", [("f", {})]).startswith("Let me see.\n<tool_call>")
    with pytest.raises(RowError):
        form.calls("<think>x</think>", [("f", {})])


@pytest.mark.parametrize("value", [None, "", "[]", [], TOOLS, "[{}]"])
def test_tools_can_be_a_list_or_its_text(value):
    assert read_tools(value, "tools") in ([], TOOLS, [{}])


@pytest.mark.parametrize("value", [5, "{", "{}", [5], ["f"], [{"x": "\ud800"}], [{"x": b""}]])
def test_what_is_no_list_of_tools_is_said(value):
    with pytest.raises(RowError) as caught:
        read_tools(value, "tools")
    assert caught.value.field.startswith("tools")


@pytest.mark.parametrize(
    "value",
    [{"name": "f", "arguments": {"x": 1}}, '{"name": "f", "arguments": {"x": 1}}',
     [{"function": {"name": "f", "arguments": '{"x": 1}'}}], '[{"name":"f","arguments":{"x":1}}]'],
)  # fmt: skip
def test_a_call_has_many_spellings(value):
    assert read_calls(value, "f") == [("f", {"x": 1})]


@pytest.mark.parametrize(
    ("value", "field"),
    [("{", "f"), ("[]", "f"), ("5", "f"), (None, "f"), ([{}], "f[0].name"), ([5], "f[0]"),
     ({"name": "f"}, "f.arguments"), ({"name": "f", "arguments": "{"}, "f.arguments"),
     ({"name": "f", "arguments": [1]}, "f.arguments"), ({"name": 5, "arguments": {}}, "f.name"),
     ({"name": "f", "arguments": {"x": "\ud800"}}, "f.arguments")],
)  # fmt: skip
def test_what_is_no_call_is_said(value, field):
    with pytest.raises(RowError) as caught:
        read_calls(value, "f")
    assert caught.value.field == field
