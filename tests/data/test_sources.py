"""Tests of mindspeed_llm.data.sources: `--map-keys` and Alpaca rows."""

from __future__ import annotations

import json

import pytest

from mindspeed_llm.data.messages import Conversation, RowError
from mindspeed_llm.data.sources import make_source
from mindspeed_llm.errors import ConfigError

ALPACA = "AlpacaStyleInstructionHandler"
MAPPED = {"history": "histories", "system": "persona"}


def read(row, map_keys=None):
    return make_source(ALPACA, map_keys).read(row)


def row(**changes):
    return {"instruction": "B?", "input": "", "output": "b.", **changes}


@pytest.mark.parametrize(
    ("prompt", "query", "expected"),
    [("I", "x", "I\nx"), ("I", "", "I"), ("", "x", "x"), ("I", None, "I"), (None, "x", "x")],
)
def test_prompt_and_query_are_joined(prompt, query, expected):
    talk = read({"instruction": prompt, "input": query, "output": "o"})
    assert talk == Conversation.of(expected, "o")


def test_a_row_without_the_input_column_is_read():
    assert read({"instruction": "I", "output": "o"}) == Conversation.of("I", "o")


@pytest.mark.parametrize("as_text", [False, True])
def test_history_comes_first_and_is_trained(as_text):
    pairs = [["A?", "a."], ["C?", "c."]]
    talk = read(row(histories=json.dumps(pairs) if as_text else pairs), MAPPED)
    assert talk == Conversation.of("A?", "a.", "C?", "c.", "B?", "b.")
    assert all(m.train for m in talk.messages)


@pytest.mark.parametrize("empty", [[], None, "", " ", "[]", "null"])
def test_no_history(empty):
    assert read(row(histories=empty), MAPPED) == Conversation.of("B?", "b.")


def test_history_and_system_are_read_only_when_mapped():
    given = row(history=[["A?", "a."]], system="S", persona="P", histories=[["C?", "c."]])
    assert read(given) == Conversation.of("B?", "b.")
    assert read(given, MAPPED) == Conversation.of("C?", "c.", "B?", "b.", system="P")
    assert read(row(persona="", histories=None), MAPPED).system is None


def test_a_map_overrides_what_it_names_and_keeps_the_rest():
    given = {"question": "Q", "input": "x", "output": "o"}
    assert read(given, {"prompt": "question"}) == Conversation.of("Q\nx", "o")
    assert read(given, {"prompt": "question", "query": ""}) == Conversation.of("Q", "o")
    assert read(given, {"prompt": "question", "query": None}) == Conversation.of("Q", "o")


@pytest.mark.parametrize(
    ("changes", "field", "kind"),
    [
        ({"output": ""}, "output", "empty answer"),
        ({"output": " \n"}, "output", "empty answer"),
        ({"output": None}, "output", "empty answer"),
        ({"output": 5}, "output", "not text"),
        ({"output": ["b."]}, "output", "not text"),
        ({"instruction": "", "input": None}, "instruction + input", "empty user turn"),
        ({"instruction": {"a": 1}}, "instruction", "not text"),
        ({"instruction": "\ud83d half"}, "instruction", "broken text"),
        ({"persona": True}, "persona", "not text"),
        ({"histories": "nope"}, "histories", "malformed history"),
        ({"histories": '"text"'}, "histories", "malformed history"),
        ({"histories": {"user": "A?"}}, "histories", "malformed history"),
        ({"histories": [["A?", "a.", "x"]]}, "histories[0]", "malformed history"),
        ({"histories": [["A?", "a."], "x"]}, "histories[1]", "malformed history"),
        ({"histories": [["A?", None]]}, "histories[0][1]", "empty answer"),
        ({"histories": [["", "a."]]}, "histories[0][0]", "empty user turn"),
        ({"histories": [[1, "a."]]}, "histories[0][0]", "not text"),
        ({"histories": "[" * 100_000}, "histories", "malformed history"),
    ],
)
def test_a_row_that_cannot_be_used_says_where_and_why(changes, field, kind):
    with pytest.raises(RowError) as caught:
        read(row(**changes), MAPPED)
    assert (caught.value.field, caught.value.kind) == (field, kind)


def test_columns_and_which_of_them_must_exist():
    source = make_source(ALPACA, None)
    assert source.columns == ("instruction", "input", "output")
    assert source.required == ("instruction", "output")
    mapped = make_source(ALPACA, {"query": "input", "history": "histories"})
    assert mapped.required == ("instruction", "input", "output", "histories")
    assert make_source(ALPACA, {"prompt": ""}).required == ("input", "output")


def test_turns_that_are_not_read_are_pointed_out():
    source = make_source(ALPACA, None)
    hint = source.unread_hint(frozenset({"instruction", "histories"}))
    assert '{"history": "histories"}' in hint
    assert source.unread_hint(frozenset({"instruction"})) is None
    assert make_source(ALPACA, MAPPED).unread_hint(frozenset({"history", "histories"})) is None


@pytest.mark.parametrize(
    ("map_keys", "message"),
    [
        ({"histroy": "h"}, "no attribute 'histroy'.* history, system"),
        ({"history": 5}, "'history': 5"),
        ({"response": ""}, "needs 'response'"),
        ({"prompt": None, "query": None}, "at least one of"),
    ],
)
def test_a_wrong_map_is_refused(map_keys, message):
    with pytest.raises(ConfigError, match=message):
        make_source(ALPACA, map_keys)


def test_an_unknown_handler_lists_the_known_ones():
    with pytest.raises(ConfigError, match="AlpacaStyleInstructionHandler"):
        make_source("AlpacaHandler", None)
