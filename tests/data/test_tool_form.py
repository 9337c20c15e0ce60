"""Tests of mindspeed_llm.data.tool_form: texts of tools, calls and results, by form."""

from __future__ import annotations

import pytest

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.templates import TEMPLATES
from mindspeed_llm.data.tool_form import Call, Repeated, ToolForm, ToolTurns, read_calls, read_tools

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"x": "\u00e9"}}},
         {"type": "function", "function": {"name": "put", "parameters": {}}}]  # fmt: skip
MISTRAL = TEMPLATES["mistral-v3-tekken"].tools
LLAMA = TEMPLATES["llama3.1"].tools
QWEN = TEMPLATES["qwen"].tools
CALL = Call("f", {"a": "{id} {content} {name}"}, "abcdefghi")


def test_a_form_is_repeated():
    form = Repeated("<{content}>", ", ", "[", "]")
    assert [form.form(n) for n in (1, 2)] == ["[<{content}>]", "[<{content}>, <{content}>]"]


def test_what_is_put_in_is_never_read_as_a_place():
    content, parts = ToolTurns(MISTRAL).calls("", [CALL], "f")
    said = '{"name": "f", "arguments": {"a": "{id} {content} {name}"}, "id": "abcdefghi"}'
    assert (content, parts) == ("", (said,))
    flat, parts = ToolTurns(QWEN).calls("Wait.", [CALL, CALL], "f")
    assert parts == () and flat.count("{id} {content} {name}") == 2


def test_results_belong_to_their_calls_by_id_and_else_by_order():
    def written(ids, results):
        turns = ToolTurns(MISTRAL)
        turns.calls("", [Call("f", {}, given) for given in ids], "f")
        parts = [turns.result("1", call, "r")[1][0] for call in results]
        return [part.partition('"call_id": ')[2] for part in parts]

    assert written(["aaaaaaaaa", "bbbbbbbbb"], ["bbbbbbbbb", "aaaaaaaaa"]) == [
        '"bbbbbbbbb"}', '"aaaaaaaaa"}']  # fmt: skip
    assert written(["call_1", "call_2"], ["call_2", "call_1"]) == [
        '"000000001"}', '"000000000"}']  # fmt: skip
    assert written(["", ""], [None, None]) == ['"000000000"}', '"000000001"}']
    turns = ToolTurns(MISTRAL)
    for number in range(2):  # numbers run through the conversation
        assert f'"id": "00000000{number}"' in turns.calls("", [Call("f", {})], "f")[1][0]
        turns.result("1", None, "r")


def test_a_result_is_text_or_json_as_the_template_has_it():
    for form, said in ((MISTRAL, '{"content": "a \\"b\\"", "call_id": "000000000"}'),
                       (LLAMA, '"a \\"b\\""')):  # fmt: skip
        turns = ToolTurns(form)
        turns.calls("", [Call("f", {})], "f")
        assert turns.result('a "b"', None, "r") == ("", (said,))
    turns = ToolTurns(MISTRAL)
    turns.calls("", [Call("f", {})], "f")
    assert '{"content": { "a":1}, ' in turns.result('{ "a":1}', None, "r")[1][0]


def test_what_a_form_cannot_write_is_refused():
    faults = {
        "without a call": lambda: ToolTurns(LLAMA).result("R", None, "f"),
        "several calls": lambda: ToolTurns(LLAMA).calls("", [CALL, CALL], "f"),
        "text beside": lambda: ToolTurns(MISTRAL).calls("Wait.", [CALL], "f"),
        "after thinking": lambda: ToolTurns(
            ToolForm(call="", calls=Repeated(), results=Repeated(), closing="</think>")
        ).calls("<think>x</think>", [CALL], "f"),
        "does not list tools": lambda: TEMPLATES["deepseek3"].tools.listed(TOOLS, "tools"),
        "null": lambda: TEMPLATES["glm4"].tools.listed([{"parameters": {}}], "tools"),
    }
    for reason, fault in faults.items():
        with pytest.raises(RowError, match=reason):
            fault()


def test_a_call_waits_for_its_result():
    turns = ToolTurns(LLAMA)
    turns.other("f")
    turns.calls("", [CALL], "f")
    with pytest.raises(RowError, match="has no result"):
        turns.other("f")
    turns.result("R", "", "f")
    turns.other("f")


def test_tools_are_listed():
    assert MISTRAL.listed([{"name": "f", "return": 1}, TOOLS[1]], "t") == (
        '{"type": "function", "function": {"name": "f"}}, '
        '{"type": "function", "function": {"name": "put", "parameters": {}}}'
    )
    assert LLAMA.listed([{"name": "f"}], "t") == '{\n    "name": "f"\n}\n\n'
    assert QWEN.listed([{"name": "f"}], "t") == '\n{"name": "f"}'


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
    assert read_calls(value, "f") == [Call("f", {"x": 1})]


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
