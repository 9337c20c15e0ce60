"""Tests of mindspeed_llm.data.fields."""

from __future__ import annotations

import pytest

from mindspeed_llm.data.fields import is_text, json_list, kind_of, text, text_or_empty
from mindspeed_llm.data.messages import RowError


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "null"), ({}, "an object"), ([], "a list"), (True, "true or false"), (1.5, "a number"),
     ("", "a text"), (b"", "bytes")],
)  # fmt: skip
def test_kinds_are_named_as_in_json(value, kind):
    assert kind_of(value) == kind


@pytest.mark.parametrize("value", ["x", " x\n", "\x00", "", " \x1c\n", "\u00e9", "\udc00", None, 1])
def test_what_is_surely_text_is_taken_as_it_is(value):
    try:
        taken = text(value, "f", "answer")
    except RowError:
        assert not is_text(value)
    else:
        assert taken == value and is_text(value) == value.isascii()


def test_text_is_kept_as_it_is():
    for value in ("é\U0001f600\x00\r\n", " x "):
        assert text_or_empty(value, "f") == text(value, "f", "answer") == value
    assert text_or_empty(None, "f") == ""


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1, "not text"), ("\udc00", "broken text"), (" ", "empty answer"), (None, "empty answer")],
)
def test_what_is_no_text_is_said(value, kind):
    with pytest.raises(RowError) as caught:
        text(value, "output", "answer")
    assert (caught.value.field, caught.value.kind) == ("output", kind)


@pytest.mark.parametrize("value", [None, "", "  ", "null", "[]", []])
def test_an_empty_list_has_many_spellings(value):
    assert json_list(value, "f", "a list", kind="k") == []


@pytest.mark.parametrize("value", ["{", "5", 5, {}])
def test_what_is_no_list_is_said(value):
    with pytest.raises(RowError) as caught:
        json_list(value, "f", "a list", kind="k")
    assert (caught.value.field, caught.value.kind) == ("f", "k")
