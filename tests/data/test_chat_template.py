"""Tests of mindspeed_llm.data.chat_template: what forms and thinking make of a conversation."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.data.chat_template import BOS, CUT, EOS, Part, Template, split_markers
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.templates import find_template

TALK = Conversation.of("A?", "a.", "B?", "b.")
PLAIN = Template(name="plain", markers=("<u>", "<a>", "<e>"), user="<u>{content}", header="<a>",
                 end="<e>")  # fmt: skip
THOUGHT = Conversation.of("A?", "<think>\nso\n</think>\n\na.", "B?", "b.")


def said(template: Template, talk: Conversation = TALK) -> str:
    return "".join("|" if p.kind == "cut" else f"[{p.text}]" if p.trained else p.text
                   for p in template.plan(talk))  # fmt: skip


def changed(**fields: object) -> str:
    talk = dataclasses.replace(TALK, system="S")
    return said(dataclasses.replace(PLAIN, **fields), talk)


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({}, "<u>S\n\nA?<a>[a.][<e>]<u>B?<a>[b.][<e>]"),
        ({"first_user": "({content})"}, "(S\n\nA?)<a>[a.][<e>]<u>B?<a>[b.][<e>]"),
        ({"lead": "<<{content}>>"}, "<u><<S>>A?<a>[a.][<e>]<u>B?<a>[b.][<e>]"),
        ({"answer": " {content} "}, "<u>S\n\nA?<a>[ a. ][<e>]<u>B?<a>[ b. ][<e>]"),
        ({"after": "\n", "tail": EOS}, "<u>S\n\nA?<a>[a.][<e>]\n<u>B?<a>[b.][<e>]\n{eos}"),
        ({"after": "\n", "train_after": True}, "<u>S\n\nA?<a>[a.][<e>][\n]<u>B?<a>[b.][<e>][\n]"),
        ({"end": ""}, "<u>S\n\nA?<a>[a.]<u>B?<a>[b.]"),
        ({"end": "", "eos_label": True}, "<u>S\n\nA?<a>[a.]<u>B?<a>[b.][{eos}]"),
        ({"apart": True, "system": "({content})", "prefix": BOS},
         "{bos}|(S)|<u>A?<a>|[a.][<e>]|<u>B?<a>|[b.][<e>]"),
        ({"user": "\n{cut}<u>{content}"}, "\n|<u>S\n\nA?<a>[a.][<e>]\n|<u>B?<a>[b.][<e>]"),
    ],
)  # fmt: skip
def test_fields(fields, written):
    assert changed(**fields) == written


def test_trims_before_or_after_the_system_text():
    talk = Conversation.of(" A? ", " a. ", system=" S ")
    once = dataclasses.replace(PLAIN, trim=True)
    assert said(once, talk) == "<u> S \n\nA?<a>[a.][<e>]"
    assert said(dataclasses.replace(once, trim_merged=True), talk) == "<u>S \n\n A?<a>[a.][<e>]"
    assert said(dataclasses.replace(once, trim_system=True), talk) == "<u>S\n\nA?<a>[a.][<e>]"
    blank = Conversation.of(" ", "a.", system="S")
    assert said(dataclasses.replace(once, trim_merged=True), blank) == "<u>S<a>[a.][<e>]"


def test_an_empty_system_text_may_mean_the_default():
    own = dataclasses.replace(PLAIN, system="({content})", default_system="D")
    empty = dataclasses.replace(TALK, system="")
    assert said(own, empty).startswith("()<u>")
    assert said(dataclasses.replace(own, empty_system=False), empty).startswith("(D)<u>")
    none = dataclasses.replace(own, empty_system=False, default_system=None)
    assert said(none, empty).startswith("<u>")


def test_eos_labels_follow_trained_answers_only():
    template = dataclasses.replace(PLAIN, end="", eos_label=True)
    second = [p for p in template.plan(TALK) if p.text == "<u>"][1]
    assert second == Part("marker", "<u>", label=EOS)
    silent = dataclasses.replace(TALK.messages[1], train=False)
    talk = dataclasses.replace(TALK, messages=(TALK.messages[0], silent, *TALK.messages[2:]))
    assert [p.label for p in template.plan(talk) if p.text == "<u>"] == ["", ""]


def test_contents_never_become_forms():
    hostile = "{content} {bos} {eos} {cut} {{idx}} <u> <e>"
    parts = PLAIN.plan(Conversation.of(hostile, hostile, system=hostile))
    assert [p.kind for p in parts] == ["marker", "text", "text", "marker", "answer", "marker"]
    assert parts[1].text == hostile + "\n\n" and parts[2].text == parts[4].text == hostile


def test_a_fingerprint_ignores_new_fields_that_are_not_used():
    assert dataclasses.replace(PLAIN, first_user="").fingerprint() == PLAIN.fingerprint()
    for fields in ({"first_user": "x"}, {"thinking": "keep"}, {"answer": " {content}"}):
        assert dataclasses.replace(PLAIN, **fields).fingerprint() != PLAIN.fingerprint()


def test_qwen3_shows_thinking_in_the_last_answer_only():
    template = find_template("qwen3")
    assert said(template, THOUGHT) == (
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\na.<|im_end|>\n"
        "<|im_start|>user\nB?<|im_end|>\n"
        "<|im_start|>assistant\n[<think>\n\n</think>\n\nb.][<|im_end|>]\n"
    )
    first = dataclasses.replace(THOUGHT, messages=THOUGHT.messages[:2])
    assert said(template, first).endswith("[<think>\nso\n</think>\n\na.][<|im_end|>]\n")


def test_qwen3_keeps_thinking_when_told_to():
    assert said(find_template("qwen3", thinking="keep"), THOUGHT) == (
        "<|im_start|>user\nA?<|im_end|>\n"
        "<|im_start|>assistant\n[<think>\nso\n</think>\n\na.][<|im_end|>]\n"
        "<|im_start|>user\nB?<|im_end|>\n"
        "<|im_start|>assistant\n[<think>\n\n</think>\n\nb.][<|im_end|>]\n"
    )


def test_a_tool_result_is_no_new_question():
    result = "<tool_response>\nR\n</tool_response>"
    talk = Conversation.of("A?", "<think>so</think>call", result, "a.")
    template = find_template("qwen3")
    assert "[<think>\nso\n</think>\n\ncall]" in said(template, talk)
    assert template.expand(talk) == [talk]
    later = Conversation.of(*(m.content for m in talk.messages), "B?", "b.")
    assert "so" not in said(template, later)
    assert [len(row.messages) for row in template.expand(later)] == [2, 4, 6]


def test_deepseek3_trains_earlier_answers_that_stand_as_generated():
    template = find_template("deepseek3")
    assert "[a.]" in said(template, TALK) and "[b.]" in said(template, TALK)
    thought = said(template, THOUGHT)
    assert "\n\na.<" in thought and "so" not in thought and "[b.]" in thought


@pytest.mark.parametrize("name", ["qwen3", "deepseek3"])
def test_expanded_rows_together_train_every_target_once_as_it_is_generated(name):
    template = find_template(name)
    asked = Message("assistant", "no", train=False)
    talk = Conversation.of(
        "A?", "<think>1</think>x", "B?", "y", "C?", "z", "D?", "<think>4</think>w"
    )
    talk = dataclasses.replace(talk, messages=(*talk.messages[:4], talk.messages[4], asked,
                                               *talk.messages[6:]))  # fmt: skip
    trained = []
    for sample in template.expand(talk):
        answers = [p.text for p in template.plan(sample) if p.kind == "answer" and p.trained]
        trained += answers
        closed = dataclasses.replace(sample, messages=sample.messages[:-1])
        plan = template.plan(sample)
        assert plan[: len(template.plan(closed))] == template.plan(closed)
    generated = ["<think>\n1\n</think>\n\nx", "<think>\n\n</think>\n\ny",
                 "<think>\n4\n</think>\n\nw"] if name == "qwen3" else [
                 "<think>1</think>x", "y", "<think>4</think>w"]  # fmt: skip
    assert sorted(trained) == sorted(generated)


def test_what_needs_no_row_of_its_own_gets_none():
    assert find_template("deepseek3").expand(TALK) == [TALK]
    assert find_template("gemma").expand(THOUGHT) == [THOUGHT]
    for thinking in ("keep", "strip-history"):
        assert find_template("qwen3", thinking=thinking).expand(THOUGHT) == [THOUGHT]
    rows = find_template("qwen3").expand(THOUGHT)
    assert [len(row.messages) for row in rows] == [2, 4]


def test_a_row_that_would_train_nothing_is_left_out():
    silent = dataclasses.replace(THOUGHT.messages[3], train=False)
    talk = dataclasses.replace(THOUGHT, messages=(*THOUGHT.messages[:3], silent))
    assert [len(row.messages) for row in find_template("qwen3").expand(talk)] == [2]


def test_forms_know_four_placeholders():
    assert CUT == "{cut}" and BOS == "{bos}" and EOS == "{eos}"
    parts = dataclasses.replace(PLAIN, user="{bos}{cut}{eos}x{content}").plan(TALK)
    assert [p.kind for p in parts[:4]] == ["marker", "cut", "marker", "text"]


def test_split_markers_prefers_the_longest():
    assert split_markers("a<x><x>>b", ["<x>", "<x>>"]) == ["a", "<x>", "<x>>", "b"]
    assert split_markers("ab", []) == ["ab"]
    assert split_markers("", []) == []
