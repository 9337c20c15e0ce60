"""Tests of mindspeed_llm.data.tool_choice; the oracle for Qwen's form is transformers with its
rules as jinja, for the others what their models' own templates write."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.message_lists import MessageListSource
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.mindspeed_templates import MINDSPEED_TEMPLATES
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.roles import repair
from mindspeed_llm.data.templates import QWEN_TOOLS, TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.tool_choice import find_tool_form

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


def qwens(default: str | None) -> str:
    head, tail = QWEN_TOOLS.tools.split("{content}\n")
    names = {"DEFAULT": "none" if default is None else repr(default), "TOOLS_HEAD": repr(head),
             "TOOLS_TAIL": repr("\n" + tail)}  # fmt: skip
    text = JINJA
    for name, value in names.items():
        text = text.replace(name, value)
    return text


QUESTION = {"role": "user", "content": "Where?"}
CALL = {"type": "function", "function": {"name": "look", "arguments": ARGUMENTS}}


@pytest.fixture
def tokenizer_of(tmp_path, make_tokenizer_dir):
    return lambda text: load_tokenizer(make_tokenizer_dir(tmp_path / "t", chat_template=text))


def called(*calls, content=""):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def read(form, messages, tools):
    source = dataclasses.replace(MessageListSource.openai(None), tool_form=form)
    return source.read({"messages": messages, "tools": tools})


@pytest.mark.parametrize("name", ["chatml", "qwen", "qwen2.5"])
@pytest.mark.parametrize("system", [None, "S"])
@pytest.mark.parametrize("tools", [TOOLS, []])
def test_text_and_ids_are_those_of_the_tokenizers_own_template(tokenizer_of, name, system, tools):
    template = find_template(name)
    tokenizer = tokenizer_of(qwens(template.default_system))
    messages = [
        QUESTION, called(CALL, CALL, content="Let me see."),
        {"role": "tool", "content": '{"a": 1}'}, {"role": "tool", "content": "R"}, called(CALL),
        {"role": "tool", "content": "S"}, {"role": "assistant", "content": "There."},
    ]  # fmt: skip
    messages = ([] if system is None else [{"role": "system", "content": system}]) + messages
    form = find_tool_form(template, tokenizer)
    theirs = tokenizer.hf.apply_chat_template(messages, tools=tools or None, tokenize=False)
    talk = read(form, messages, tools)
    ours = Renderer(tokenizer, template).render(talk)
    assert tokenizer.decode(ours.ids) == theirs
    own = HfChatTemplate(tokenizer)
    assert find_tool_form(own, tokenizer) == form
    assert Renderer(tokenizer, own).render(talk).ids == ours.ids


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
_JSON = """{
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {}
    }
}"""
_BARE = '{\n    "name": "f",\n    "parameters": {}\n}'
_LISTED = '{"type": "function", "function": {"name": "f", "parameters": {}}}'
_HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
_ASK = _HEAD.format("assistant")
# Question, call, result, second call, result, answer; what is trained stands in brackets.
WRITTEN = {
    "llama3.1": "<bos>" + _HEAD.format("system") + "Environment: ipython\nCutting Knowledge Date: "
    "December 2023\nToday Date: 26 Jul 2024\n\nS<|eot_id|>" + _HEAD.format("user") + "Given the "
    "following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\nRespond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use '
    f"variables.\n\n{_JSON}\n\nA?<|eot_id|>{_ASK}"
    '[{"name": "f", "parameters": {"x": 1}}][<|eot_id|>]' + _HEAD.format("ipython") +
    f'"R"<|eot_id|>{_ASK}[{{"name": "f", "parameters": {{}}}}][<|eot_id|>]' +
    _HEAD.format("ipython") + f'"2"<|eot_id|>{_ASK}[a.][<|eot_id|>]',
    "mistral-v3": f"<bos>[AVAILABLE_TOOLS] [{_LISTED}][/AVAILABLE_TOOLS][INST] S\n\nA?[/INST]"
    '[[TOOL_CALLS]][ [{"name": "f", "arguments": {"x": 1}, "id": "abcdefghi"}]][<eos>]'
    '[TOOL_RESULTS] {"content": "R", "call_id": "abcdefghi"}[/TOOL_RESULTS]'
    '[[TOOL_CALLS]][ [{"name": "f", "arguments": {}, "id": "000000001"}]][<eos>]'
    '[TOOL_RESULTS] {"content": 2, "call_id": "000000001"}[/TOOL_RESULTS][ a.][<eos>]',
    "deepseek3": "<bos>S<｜User｜>A?<｜Assistant｜>[<｜tool▁calls▁begin｜>][<｜tool▁call▁begin｜>]"
    '[function][<｜tool▁sep｜>][f\n```json\n{"x": 1}\n```][<｜tool▁call▁end｜>]'
    "[<｜tool▁calls▁end｜>][<｜end▁of▁sentence｜>]<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>R<｜tool▁output▁end｜>"
    "<｜tool▁outputs▁end｜>[<｜tool▁calls▁begin｜>][<｜tool▁call▁begin｜>]"
    "[function][<｜tool▁sep｜>][f\n```json\n{}\n```][<｜tool▁call▁end｜>][<｜tool▁calls▁end｜>]"
    "[<｜end▁of▁sentence｜>]<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>2<｜tool▁output▁end｜>"
    "<｜tool▁outputs▁end｜>[a.][<｜end▁of▁sentence｜>]",
    "glm4": "[gMASK]<sop><|system|>\n你是一个名为 ChatGLM 的人工智能助手。"
    "你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具\n## f\n\n" + _BARE +
    "\n在调用上述函数时，请使用 Json 格式表示调用的参数。<|system|>\nS<|user|>\nA?<|assistant|>"
    '[f\n{"x": 1}][<|observation|>]\nR<|assistant|>[f\n{}][<|observation|>]\n2<|assistant|>'
    "[\na.][<|user|>]",
}  # fmt: skip
WRITTEN["mistral-v3-tekken"] = WRITTEN["mistral-v3"]
for blank in ("] [", "[INST] ", "][ [", "] {", "[ a."):
    WRITTEN["mistral-v3-tekken"] = WRITTEN["mistral-v3-tekken"].replace(
        blank, blank.replace(" ", "")
    )


def call(arguments, given):
    return called({"id": given, "type": "function",
                   "function": {"name": "f", "arguments": arguments}})  # fmt: skip


ROW = [{"role": "system", "content": "S"}, {"role": "user", "content": "A?"},
       call({"x": 1}, "abcdefghi"), {"role": "tool", "content": "R", "tool_call_id": "abcdefghi"},
       call("{}", "call_2"), {"role": "tool", "content": "2", "tool_call_id": "call_2"},
       {"role": "assistant", "content": "a."}]  # fmt: skip


def marked(renderer, talk):
    """The row as text, each part in brackets where it is trained."""
    own = {"{bos}": "<bos>", "{eos}": "<eos>"}
    text = ""
    joined = None
    for part in renderer.template.plan(talk):
        said = own.get(part.text, part.text)
        kind = "marker" if part.kind == "marker" else "text"
        if part.trained and joined == ("text", kind):
            text = text[:-1] + said + "]"
        else:
            text += f"[{said}]" if part.trained else said
        joined = (kind, "text") if part.trained else None
    return text


@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_is_written_as_its_model_wants_it(rich_tokenizer, name):
    template = find_template(name)
    renderer = Renderer(rich_tokenizer, template)
    form = find_tool_form(template, rich_tokenizer)
    talk = read(form, ROW, [TOOL] if form.tools else [])
    talk.check_trainable()
    assert marked(renderer, talk) == WRITTEN[name]
    row = renderer.render(talk)
    assert rich_tokenizer.decode(row.ids) == "".join(
        {"{bos}": "<bos>", "{eos}": "<eos>"}.get(p.text, p.text) for p in template.plan(talk)
    )
    assert all(label in (IGNORE, token) for token, label in zip(row.ids, row.labels, strict=True))
    trained = [t for t, label in zip(row.ids, row.labels, strict=True) if label != IGNORE]
    ends = {renderer.end_id, *(rich_tokenizer.token_id(m) for m in [form.call_end] if m)}
    assert sum(t in ends for t in trained) == 3
    # Each answer's prompt is what stands before it.
    for turn in (2, 4):
        asked = dataclasses.replace(talk, messages=talk.messages[: turn + 1])
        prompt = renderer.prompt(asked)
        assert row.ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", WRITTEN)
def test_markers_in_calls_and_results_stay_text(rich_tokenizer, name):
    template = find_template(name)
    form = find_tool_form(template, rich_tokenizer)
    renderer = Renderer(rich_tokenizer, template)
    hostile = " ".join((*template.written, "{content} {id}"))

    def specials(said):
        talk = read(form, [QUESTION, call({"x": said}, ""), {"role": "tool", "content": said},
                           {"role": "assistant", "content": "a."}], [])  # fmt: skip
        known = {rich_tokenizer.token_id(m) for m in template.written}
        return [t for t in renderer.render(talk).ids if t in known]

    assert specials(hostile) == specials("plain")


@pytest.mark.parametrize("name", ["mistral-v3", "deepseek3"])
def test_several_calls_and_results_are_one_turn_each(rich_tokenizer, name):
    template = find_template(name)
    form = find_tool_form(template, rich_tokenizer)
    calls = [c for given in ("aaaaaaaaa", "bbbbbbbbb") for c in call({}, given)["tool_calls"]]
    results = [{"role": "tool", "content": given, "tool_call_id": given * 9} for given in "ba"]
    talk = read(form, [QUESTION, called(*calls), *results, {"role": "assistant", "content": "a."}],
                [])  # fmt: skip
    apart = read(form, [QUESTION, called(calls[0]), called(calls[1]), *results,
                        {"role": "assistant", "content": "a."}], [])  # fmt: skip
    assert apart == talk and [len(m.tool) for m in talk.messages] == [0, 2, 2, 0]
    text = marked(Renderer(rich_tokenizer, template), talk)
    if name == "mistral-v3":
        assert '{"content": "b", "call_id": "bbbbbbbbb"}[/TOOL_RESULTS][TOOL_RESULTS] {"con' in text
        assert '"id": "aaaaaaaaa"}, {"name": "f", "arguments": {}, "id": "bbbbbbbbb"}]]' in text
    else:
        assert "<｜tool▁call▁end｜>][\n][<｜tool▁call▁begin｜>]" in text
        assert "b<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>a<｜tool▁output▁end｜>" in text


def test_text_beside_a_call_is_trained_where_the_template_writes_it(rich_tokenizer):
    template = find_template("deepseek3")
    row = [QUESTION, called(*call({}, "")["tool_calls"], content="Wait."),
           {"role": "tool", "content": "R"}, {"role": "assistant", "content": "a."}]  # fmt: skip
    talk = read(find_tool_form(template, rich_tokenizer), row, [])
    said = marked(Renderer(rich_tokenizer, template), talk)
    assert "<｜Assistant｜>[Wait.][<｜tool▁calls▁begin｜>]" in said


def test_what_precedes_the_first_question_goes_with_its_results(rich_tokenizer):
    form = find_tool_form(find_template("mistral-v3"), rich_tokenizer)
    row = [call({}, ""), {"role": "tool", "content": "R"}, {"role": "assistant", "content": "b."},
           QUESTION, {"role": "assistant", "content": "a."}]  # fmt: skip
    talk, done = repair(read(form, row, []))
    assert talk == Conversation.of("Where?", "a.") and len(done) == 1


def test_templates_without_a_form_say_so(tokenizer_of, jinja, tokenizer, rich_tokenizer):
    able = {"chatml", "qwen", "qwen2.5", "qwen3", *WRITTEN}
    for name, template in TEMPLATES.items():
        form = find_tool_form(template, rich_tokenizer)
        if name in able:
            assert form == template.tools or form.flat
        else:
            assert form.startswith(f"template {name} has no form for tools; those that have: ")
            assert {*form.partition(": ")[2].split(", ")} == able
    assert "no such token" in find_tool_form(TEMPLATES["mistral-v3"], tokenizer)
    assert "--template-compat" in find_tool_form(MINDSPEED_TEMPLATES["qwen"], tokenizer)
    for text in (jinja["gemma"], jinja["llama3"], jinja["chatml"]):
        own = tokenizer_of(text)
        assert "does not write tools" in find_tool_form(HfChatTemplate(own), own)
