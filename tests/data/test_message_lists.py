"""Tests of mindspeed_llm.data.message_lists: ShareGPT and OpenAI rows."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mindspeed_llm.data.messages import Conversation, RowError
from mindspeed_llm.data.sources import make_source
from mindspeed_llm.data.templates import QWEN_TOOLS
from mindspeed_llm.errors import ConfigError

SHAREGPT = "SharegptStyleInstructionHandler"
OPENAI = "OpenAIInstructionHandler"


def sharegpt(*turns, map_keys=None, **columns):
    messages = [{"from": role, "value": value} for role, value in turns]
    return make_source(SHAREGPT, map_keys).read({"conversations": messages, **columns})


def openai(*messages, map_keys=None, **columns):
    return make_source(OPENAI, map_keys).read({"messages": list(messages), **columns})


WITHOUT_FORM = "tools without a form"
TURNS = (("human", "A?"), ("gpt", "a."), ("human", "B?"), ("gpt", "b."))
TALK = Conversation.of("A?", "a.", "B?", "b.")


def test_sharegpt():
    assert sharegpt(*TURNS) == TALK
    row = {"conversations": json.dumps([{"from": r, "value": v} for r, v in TURNS])}
    assert make_source(SHAREGPT, None).read(row) == TALK


def test_openai():
    messages = [{"role": "user", "content": "A?"},
                {"role": "assistant", "content": [{"type": "text", "text": "a"},
                                                  {"type": "text", "text": "."}]}]  # fmt: skip
    assert openai(*messages) == Conversation.of("A?", "a.")


def test_the_first_message_comes_before_the_column_and_the_column_before_the_default():
    keys = {"system": "persona"}
    assert sharegpt(*TURNS).system is None
    assert sharegpt(*TURNS, map_keys=keys, persona="P").system == "P"
    assert sharegpt(*TURNS, map_keys=keys, persona="").system is None
    assert sharegpt(("system", "S"), *TURNS, map_keys=keys, persona="P").system == "S"
    assert sharegpt(("system", ""), *TURNS, map_keys=keys, persona="P").system == ""
    assert sharegpt(("system", None), *TURNS, map_keys=keys, persona="P").system == "P"


def test_a_partial_map_of_tags_keeps_the_other_names():
    messages = [{"from": "system", "value": "S"}, {"from": "bot", "value": "a."}]
    messages.insert(1, {"from": "human", "value": "A?"})
    row = {"chat": messages}
    source = make_source(SHAREGPT, {"messages": "chat", "tags": {"assistant_tag": "bot"}})
    assert source.read(row) == Conversation.of("A?", "a.", system="S")
    assert source.columns == ("chat", "tools") and source.required == ("chat",)
    assert make_source(SHAREGPT, {"tools": "t"}).required == ("conversations", "t")
    assert make_source(SHAREGPT, {"tools": None}).columns == ("conversations",)


def test_openai_names_through_the_sharegpt_handler():
    keys = {"messages": "messages", "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user",
        "assistant_tag": "assistant", "system_tag": "system"}}  # fmt: skip
    row = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "a."}]}
    assert make_source(SHAREGPT, keys).read(row) == Conversation.of("A?", "a.")


@pytest.mark.parametrize(
    ("key", "value"), [("loss", False), ("loss", 0), ("weight", 0), ("weight", 0.0)]
)
def test_answers_can_be_context_only(key, value):
    question = {"role": "user", "content": "A?"}
    answer = {"role": "assistant", "content": "a."}
    talk = openai(question, {**answer, key: value}, question, {**answer, key: 1})
    assert [m.train for m in talk.messages] == [True, False, True, True]
    assert [m.loss for m in talk.messages] == [None, False, None, True]


def test_questions_say_too_whether_they_are_trained():
    talk = openai({"role": "user", "content": "A?", "loss": True},
                  {"role": "assistant", "content": "a.", "loss": 1, "weight": 0})  # fmt: skip
    assert [m.loss for m in talk.messages] == [True, False]


@pytest.mark.parametrize(
    ("turns", "kind"),
    [
        ((("gpt", "a."), ("human", "A?"), ("gpt", "b.")), "role order"),
        ((("human", "A?"), ("human", "B?"), ("gpt", "b.")), "role order"),
        ((("human", "A?"), ("system", "S"), ("gpt", "b.")), "role order"),
        ((("human", "A?"), ("gpt", "a."), ("human", "B?")), "no answer"),
        ((("system", "S"),), "empty conversation"),
        ((), "empty conversation"),
        ((("human", "A?"), ("function_call", '{"name": "f", "arguments": {}}')), WITHOUT_FORM),
        ((("human", "A?"), ("observation", "{}")), WITHOUT_FORM),
        ((("human", "A?"), ("assistant", "a.")), "unknown role"),
        ((("human", "A?"), ("gpt", None)), "empty answer"),
        ((("human", ""), ("gpt", "a.")), "empty user turn"),
        ((("human", 5), ("gpt", "a.")), "not text"),
    ],
)
def test_what_cannot_be_used_says_why(turns, kind):
    with pytest.raises(RowError) as caught:
        sharegpt(*turns).check_trainable()
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("message", "field", "kind"),
    [
        ("text", "messages[0]", "malformed messages"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{}]},
            "messages[0].tool_calls[0].name",
            "empty tool name",
        ),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            "messages[0].content[0]",
            "not text",
        ),
        (
            {"role": "assistant", "content": "a", "loss": "no"},
            "messages[0].loss",
            "malformed messages",
        ),
        ({}, "messages[0].role", "unknown role"),
    ],
)
def test_the_field_that_is_wrong_is_named(message, field, kind):
    with pytest.raises(RowError) as caught:
        with_form(OPENAI).read({"messages": [message]})
    assert (caught.value.field, caught.value.kind) == (field, kind)


@pytest.mark.parametrize(
    ("map_keys", "message"),
    [
        ({"conversation": "c"}, "no attribute 'conversation'"),
        ({"tags": {"user": "human"}}, "no tag 'user'"),
        ({"tags": {"user_tag": None}}, "tag 'user_tag': None"),
        ({"tags": "human"}, "expected an object"),
        ({"messages": ""}, "needs a column"),
        ({"system": 5}, "'system': 5"),
        ({"tools": 5}, "'tools': 5"),
    ],
)
def test_a_wrong_map_is_refused(map_keys, message):
    with pytest.raises(ConfigError, match=message):
        make_source(SHAREGPT, map_keys)


def test_a_system_column_that_is_not_read_is_pointed_out():
    assert "'system' is not read" in make_source(SHAREGPT, None).unread_hint(frozenset({"system"}))
    mapped = make_source(SHAREGPT, {"system": "system"})
    assert mapped.unread_hint(frozenset({"system"})) is None


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"x": "\u00e9"}}}
CALL = {"name": "look", "arguments": {"x": [1, "\u00e9"]}}
CALLED = '<tool_call>\n{"name": "look", "arguments": {"x": [1, "\u00e9"]}}\n</tool_call>'
GIVEN = "<tool_response>\nR\n</tool_response>"


def with_form(handler, **changes):
    return dataclasses.replace(
        make_source(handler, None), tool_form=dataclasses.replace(QWEN_TOOLS, **changes)
    )


def test_tools_calls_and_results_become_turns():
    turns = [("human", "A?"), ("function_call", json.dumps(CALL)), ("observation", "R"),
             ("observation", "R"), ("gpt", "a.")]  # fmt: skip
    row = {"conversations": [{"from": r, "value": v} for r, v in turns],
           "tools": json.dumps([TOOL])}  # fmt: skip
    talk = with_form(SHAREGPT, default_system="D").read(row)
    texts = [m.content for m in talk.messages]
    assert texts == ["A?", CALLED, f"{GIVEN}\n{GIVEN}", "a."]
    assert [m.loss for m in talk.messages] == [None, None, False, None]
    talk.check_trainable()
    assert talk.system.startswith("D\n\n# Tools") and json.dumps(TOOL, ensure_ascii=False) in (
        talk.system
    )
    calls = [
        {"id": "1", "type": "function", "function": CALL},
        {"id": "2", "type": "function", "function": {**CALL, "arguments": '{"x":[1,"\u00e9"]}'}},
    ]
    messages = [{"role": "user", "content": "A?"},
                {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
                {"role": "tool", "content": "R", "tool_call_id": "1"},
                {"role": "tool", "content": [{"type": "text", "text": "R"}], "loss": 1},
                {"role": "assistant", "content": "a."}]  # fmt: skip
    talk = with_form(OPENAI).read({"messages": messages, "tools": None})
    assert talk.messages[1].content == f"Let me see.\n{CALLED}\n{CALLED}"
    assert talk.messages[2].content == f"{GIVEN}\n{GIVEN}" and talk.system is None
    assert talk.messages[2].loss is False
    talk.check_trainable()


def test_rows_with_tools_need_a_template_that_has_a_form_for_them():
    row = {"conversations": [{"from": r, "value": v} for r, v in TURNS], "tools": [TOOL]}
    with pytest.raises(RowError) as caught:
        make_source(SHAREGPT, None).read(row)
    assert caught.value.kind == WITHOUT_FORM and caught.value.field == "tools"
    assert make_source(SHAREGPT, None).read({**row, "tools": "[]"}) == TALK
