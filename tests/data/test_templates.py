"""Tests of mindspeed_llm.data.templates: the table, one written line a template."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.data.chat_template import BOS, CONTENT, EOS
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.errors import TemplateError

TALK = Conversation.of("A?", "a.", "B?", "b.")
OWN = {BOS: "<bos>", EOS: "<eos>"}
MISTRAL_V1 = "<bos> [INST] S\n\nA? [/INST][ a.][<eos>] [INST] B? [/INST][ b.][<eos>]"
DEEPSEEK2 = "<bos>S\n\nUser: A?\n\nAssistant:[ a.][<eos>]User: B?\n\nAssistant:[ b.][<eos>]"
IM = (
    "<|im_start|>system\nS<|im_end|>\n"
    "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n[a.][<|im_end|>]\n"
    "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n[b.][<|im_end|>]\n"
)
GEMMA = (
    "<bos><start_of_turn>user\nS\n\nA?<end_of_turn>\n<start_of_turn>model\n[a.][<end_of_turn>]\n"
    "<start_of_turn>user\nB?<end_of_turn>\n<start_of_turn>model\n[b.][<end_of_turn>]\n"
)
LLAMA3 = (
    "<bos><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nA?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[a.][<|eot_id|>]"
    "<|start_header_id|>user<|end_header_id|>\n\nB?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[b.][<|eot_id|>]"
)
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
# With the system text "S"; what is trained stands in brackets.
WRITTEN = {
    "gemma": GEMMA, "gemma2": GEMMA, "gemma3": GEMMA,
    "chatml": IM, "qwen": IM, "qwen2.5": IM, "smollm2": IM, "intern2": "<bos>" + IM,
    # Only the last answer stands as it would be generated; the first has a row of its own.
    "qwen3": IM.replace("[a.][<|im_end|>]", "a.<|im_end|>")
               .replace("[b.]", "[<think>\n\n</think>\n\nb.]"),
    "llama2": "<bos>[INST] <<SYS>>\nS\n<</SYS>>\n\nA? [/INST][ a. ][<eos>]"
              "<bos>[INST] B? [/INST][ b. ][<eos>]",
    "llama3": LLAMA3, "llama3.1": LLAMA3.replace("\n\nS", f"\n\n{DATES}S"),
    "mistral": MISTRAL_V1, "mixtral": MISTRAL_V1, "mistral-v1": MISTRAL_V1,
    "mistral-v3": "<bos>[INST] S\n\nA?[/INST][ a.][<eos>][INST] B?[/INST][ b.][<eos>]",
    "mistral-v3-tekken": "<bos>[INST]S\n\nA?[/INST][a.][<eos>][INST]B?[/INST][b.][<eos>]",
    "deepseek2": DEEPSEEK2, "deepseek2-lite": DEEPSEEK2,
    "deepseek3": "<bos>S<｜User｜>A?<｜Assistant｜>[a.][<｜end▁of▁sentence｜>]"
                 "<｜User｜>B?<｜Assistant｜>[b.][<｜end▁of▁sentence｜>]",
    "glm4": "[gMASK]<sop><|system|>\nS<|user|>\nA?<|assistant|>[\na.][<|user|>]"
            "\nB?<|assistant|>[\nb.][<|user|>]",
    "baichuan2": "S<reserved_106>A?<reserved_107>[a.][<eos>]"
                 "<reserved_106>B?<reserved_107>[b.][<eos>]",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nA?<|end|>\n<|assistant|>\n[a.][<|end|>]\n"
            "<|user|>\nB?<|end|>\n<|assistant|>\n[b.][<|end|>]\n<eos>",
    "alpaca": "S### Instruction:\nA?\n\n### Response:\n[a.][<eos>]"
              "\n\n### Instruction:\nB?\n\n### Response:\n[b.][<eos>]",
    "default": "S\nHuman: A?\nAssistant:[a.][<eos>]\nHuman: B?\nAssistant:[b.][<eos>]",
    "empty": "S\n\nA?[a.]B?[b.]", "trl": "<bos>S\n\nA?[a.]B?[b.]",
}  # fmt: skip
# What manifests of data sets prepared with the first eight templates hold.
FIRST = {
    "gemma": "a3f644b4fbb44c17c664902e82dc2f5d51bc37c5e3653fe0587fb5fe8c7af18c",
    "gemma2": "3cd92d5468b307b734327f354899be3b67402a612e8b14ead09982f69cb814d2",
    "gemma3": "15fe93ab9b9539cdb5a03aa2cc9f4f971311469d115dc0cee6cb7e89f311d297",
    "chatml": "f1fb4467c31b31fecdd37f2963365617cd1d248dc21d0d08ce808b6f7ca10ddf",
    "qwen": "aa1b97f0721df99e4b4e8e2053146069fceb13764aaf9c8e93acf31888f5078b",
    "qwen2.5": "9225a94a8cd9eb4d2657334d3bdf8ee6720dd968eda53f71904beb848ee10adb",
    "smollm2": "2b9eca4f9f6d5ff31766f71b55bacb2f11c764e4c9bc394bc922bc6ab99ac23f",
    "llama3": "fb92ecae410b18515f7c89d193f73c7d656e4031433a8f6c00f42a59db81d093",
}


def text(name: str, conversation: Conversation) -> str:
    parts = [p._replace(text=OWN.get(p.text, p.text)) for p in TEMPLATES[name].plan(conversation)]
    return "".join(f"[{p.text}]" if p.trained else p.text for p in parts)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_is_written_as_its_model_wants_it(name):
    assert text(name, dataclasses.replace(TALK, system="S")) == WRITTEN[name]


def test_the_first_templates_keep_their_fingerprints():
    assert {name: TEMPLATES[name].fingerprint() for name in FIRST} == FIRST


def test_a_system_text_stands_before_the_first_question_only():
    for name in ("gemma", "llama2", "mistral", "mistral-v3"):
        assert text(name, dataclasses.replace(TALK, system="Sy")).count("Sy") == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_a_system_text_there_is_the_default_one_or_none(name):
    default = TEMPLATES[name].default_system
    if default is None:
        said = text(name, TALK)
        assert "system|" not in said and "SYS" not in said and "|>system" not in said
        assert WRITTEN[name].endswith(said.partition("A?")[2])
    else:
        assert text(name, TALK) == WRITTEN[name].replace("S", default, 1)


def test_an_empty_system_text_replaces_the_default():
    said = text("qwen", dataclasses.replace(TALK, system=""))
    assert said.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
    assert text("alpaca", dataclasses.replace(TALK, system="")).startswith("### Instruction")


@pytest.mark.parametrize("name", TEMPLATES)
def test_forms_of_answers_hold_no_marker(name):
    template = TEMPLATES[name]
    assert template.answer.count(CONTENT) == 1
    assert not any(marker in template.answer for marker in (*template.markers, BOS, EOS))
    assert template.end in ("", EOS, *template.markers)


@pytest.mark.parametrize("name", TEMPLATES)
def test_contents_are_trimmed_exactly_where_the_models_template_does(name):
    said = text(name, Conversation.of(" hi \n", " yes  "))
    trims = name.startswith(("gemma", "llama"))
    assert (" hi \n" not in said and " yes  " not in said) == trims
    assert "hi" in said and "yes" in said


@pytest.mark.parametrize("name", TEMPLATES)
def test_placeholders_and_markers_in_contents_are_text(name):
    template = TEMPLATES[name]
    hostile = "{content} {bos} {{content}} {{idx}} " + " ".join(["x", *template.markers])
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
    kept = find_template("qwen3", thinking="keep")
    assert kept.fingerprint() != TEMPLATES["qwen3"].fingerprint()
    assert find_template("qwen3", thinking="expand") == TEMPLATES["qwen3"]


def test_thinking_needs_a_template_that_knows_it():
    with pytest.raises(TemplateError, match="gemma knows no thinking; .* qwen3, deepseek3"):
        find_template("gemma", thinking="keep")


def test_mindspeed_templates_are_a_table_of_their_own():
    assert find_template("gemma", "mindspeed") != find_template("gemma")
    with pytest.raises(TemplateError, match="no such template of MindSpeed-LLM; .* gemma"):
        find_template("gemma3", "mindspeed")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(TemplateError, match="gemma, .*llama3"):
        find_template("gema")
