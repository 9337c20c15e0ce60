"""Tests of mindspeed_llm.data.templates: the table and the parts it makes, without a tokenizer."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.data.chat_template import BOS, split_markers
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.errors import TemplateError

TALK = Conversation.of("A?", "a.", "B?", "b.")


def text(name: str, conversation: Conversation) -> str:
    parts = TEMPLATES[name].plan(conversation)
    return "".join(
        "<bos>" if p.text == BOS else f"[{p.text}]" if p.trained else p.text for p in parts
    )


def test_gemma():
    expected = (
        "<bos><start_of_turn>user\nA?<end_of_turn>\n<start_of_turn>model\n[a.][<end_of_turn>]\n"
        "<start_of_turn>user\nB?<end_of_turn>\n<start_of_turn>model\n[b.][<end_of_turn>]\n"
    )
    assert text("gemma", TALK) == expected
    assert text("gemma2", TALK) == text("gemma3", TALK) == expected


def test_gemma_puts_the_system_text_before_the_first_user_text_only():
    said = text("gemma", dataclasses.replace(TALK, system="S"))
    assert said.startswith("<bos><start_of_turn>user\nS\n\nA?<end_of_turn>\n")
    assert said.count("S\n\n") == 1


def test_chatml_and_qwen_differ_by_the_default_system_text():
    turns = (
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n[a.][<|im_end|>]\n"
        "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n[b.][<|im_end|>]\n"
    )
    assert text("chatml", TALK) == turns
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text("qwen", TALK) == system + turns


def test_an_empty_system_text_replaces_the_default():
    said = text("qwen", dataclasses.replace(TALK, system=""))
    assert said.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")


def test_llama3_has_one_bos_and_no_text_after_the_last_answer():
    said = text("llama3", dataclasses.replace(TALK, system=" S "))
    assert said.startswith("<bos><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>")
    assert said.count("<bos>") == 1
    assert said.endswith("assistant<|end_header_id|>\n\n[b.][<|eot_id|>]")


@pytest.mark.parametrize("name", TEMPLATES)
def test_contents_are_trimmed_exactly_where_the_models_template_does(name):
    said = text(name, Conversation.of(" hi \n", " yes "))
    trims = name.startswith(("gemma", "llama3"))
    assert (" hi \n" not in said and " yes " not in said) == trims
    assert "hi" in said and "yes" in said


@pytest.mark.parametrize("name", TEMPLATES)
def test_placeholders_and_markers_in_contents_are_text(name):
    template = TEMPLATES[name]
    hostile = "{content} {bos} {{content}} {{idx}} " + " ".join(template.markers)
    parts = template.plan(Conversation.of(hostile, "ok"))
    assert any(p.kind == "text" and hostile in p.text for p in parts)
    plain = template.plan(Conversation.of("plain", "ok"))
    assert [p.kind for p in parts] == [p.kind for p in plain]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_open_conversation_ends_with_the_header(name):
    template = TEMPLATES[name]
    closed = template.plan(TALK)
    opened = template.plan(Conversation.of("A?", "a.", "B?"))
    assert closed[: len(opened)] == opened
    assert closed[len(opened)].kind == "answer"


def test_fingerprints_tell_templates_apart():
    assert len({t.fingerprint() for t in TEMPLATES.values()}) == len(TEMPLATES)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(TemplateError, match="gemma, .*llama3"):
        find_template("gema")


def test_split_markers_prefers_the_longest():
    assert split_markers("a<x><x>>b", ["<x>", "<x>>"]) == ["a", "<x>", "<x>>", "b"]
    assert split_markers("ab", []) == ["ab"]
    assert split_markers("", []) == []
