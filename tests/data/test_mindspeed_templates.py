"""Tests of mindspeed_llm.data.mindspeed_templates: ids and labels, against MindSpeed-LLM's way of
making them, said once more here: slots are encoded one by one, sources and targets alternate.
"""

from __future__ import annotations

import dataclasses
import json

import pytest

from mindspeed_llm.data.chat_template import EOS
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.mindspeed_templates import MINDSPEED_TEMPLATES
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer

BOS = object()
END = object()
_IM = {
    "user": ["<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"],
    "system": ["<|im_start|>system\n%s<|im_end|>\n"], "between": ["\n"], "eos": "<|im_end|>",
}  # fmt: skip
_USER = {"prefix": [BOS], "user": ["User: %s\n\nAssistant:"], "system": ["%s\n\n"]}
_INST = {"prefix": [BOS], "user": ["[INST] %s [/INST]"]}
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
)
# What configs/finetune/templates.json of version 2.1 says; what is left out is "%s" alone, or none.
SLOTS = {
    "gemma": {"prefix": [BOS], "between": ["<end_of_turn>\n"], "efficient": True, "user": [
        "<start_of_turn>user\n%s<end_of_turn>\n<start_of_turn>model\n"]},
    "chatml": _IM,
    "qwen": {**_IM, "default": "You are a helpful assistant."},
    "intern2": {**_IM, "prefix": [BOS], "between": [], "answer": ["%s<|im_end|>\n"]},
    "llama2": {"user": [BOS, "[INST] %s [/INST]"], "merged": "<<SYS>>\n%s\n<</SYS>>\n\n"},
    "llama3": {"prefix": [BOS], "eos": "<|eot_id|>",
               "system": ["<|start_header_id|>system<|end_header_id|>\n\n%s<|eot_id|>"],
               "user": ["<|start_header_id|>user<|end_header_id|>\n\n%s<|eot_id|>"
                        "<|start_header_id|>assistant<|end_header_id|>\n\n"]},
    "mistral": _INST, "mixtral": _INST, "deepseek2": _USER, "deepseek2-lite": _USER,
    "deepseek3": {"prefix": [BOS], "user": ["<｜User｜>%s<｜Assistant｜>"]},
    "glm4": {"prefix": ["[gMASK]<sop>"], "system": ["<|system|>\n%s"], "efficient": True,
             "user": ["<|user|>\n%s<|assistant|>"], "answer": ["\n%s"]},
    "baichuan2": {"user": ["<reserved_106>%s<reserved_107>"], "efficient": True},
    "alpaca": {"user": ["### Instruction:\n%s\n\n### Response:\n"], "between": ["\n\n"],
               "default": _ALPACA},
    "default": {"user": ["Human: %s\nAssistant:"], "system": ["%s\n"], "between": ["\n"]},
    "empty": {"user": ["%s"], "answer": ["%s"]},
    "trl": {"prefix": [BOS], "user": ["%s"], "answer": ["%s"]},
}  # fmt: skip


def theirs(tokenizer, slots, talk) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation by their rules."""
    eos = tokenizer.eos_id if "eos" not in slots else tokenizer.token_id(slots["eos"])
    backend = tokenizer.hf.backend_tokenizer

    def encode(elements, content=""):
        ids = []
        for element in elements:
            if element is BOS or element is END:
                ids.append(tokenizer.bos_id if element is BOS else eos)
            elif element.replace("%s", content, 1):
                text = element.replace("%s", content, 1)
                ids += backend.encode(text, add_special_tokens=False).ids
        return ids

    efficient = slots.get("efficient", False)
    answer = slots.get("answer", ["%s"] if efficient else ["%s", END])
    system = talk.system or slots.get("default", "")
    ids: list[int] = []
    labels: list[int] = []
    for turn in range(0, len(talk.messages), 2):
        question = talk.messages[turn].content
        source = []
        if turn == 0:
            source += encode(slots.get("prefix", []))
            if system and "merged" in slots:
                question = slots["merged"] % system + question
            elif system:
                source += encode(slots.get("system", ["%s"]), system)
        else:
            source += encode(slots.get("between", []))
        source += encode(slots["user"], question)
        target = encode(answer, talk.messages[turn + 1].content)
        mask = [IGNORE] * len(source)
        if ids and efficient:
            mask[0] = eos
        ids, labels = ids + source + target, labels + mask + target
    if efficient:
        ids, labels = [*ids, eos], [*labels, eos]
    return ids, labels


TALKS = (
    Conversation.of("A?", "a."),
    Conversation.of("A?", "a.", "B?\n\nyes", "b.\n", " C ", "c."),
    Conversation.of(" hi \n", "\nHello", "B?", "\n\nb.", system="Be brief."),
    Conversation.of("A?", "a.", system=""),
)


def test_both_tables_name_the_same_templates():
    assert set(MINDSPEED_TEMPLATES) == set(SLOTS)


@pytest.mark.parametrize("name", MINDSPEED_TEMPLATES)
def test_ids_and_labels_are_those_of_mindspeed_llm(name, renderer_of):
    renderer = renderer_of(name, "mindspeed")
    for talk in TALKS:
        ids, labels = theirs(renderer.tokenizer, SLOTS[name], talk)
        assert renderer.render(talk).ids == ids
        assert renderer.render(talk).labels == [IGNORE, *labels[1:]]


@pytest.mark.parametrize("name", ["llama2", "mistral", "deepseek2", "default", "glm4", "intern2"])
@pytest.mark.parametrize("scheme", ["always", "first"])
def test_so_they_are_with_a_tokenizer_that_writes_blanks(name, scheme, renderer_of, tmp_path):
    hf = renderer_of(name, "mindspeed").tokenizer.hf
    spec = json.loads(hf.backend_tokenizer.to_str())
    spec["model"]["vocab"]["\u2581"] = len(spec["model"]["vocab"])
    spec["model"]["unk_token"], spec["decoder"] = "<pad>", None
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme,
                             "split": True}  # fmt: skip
    hf.save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path / "t")
    renderer = Renderer(tokenizer, find_template(name, "mindspeed"))
    for talk in TALKS:
        assert renderer.render(talk).ids == theirs(tokenizer, SLOTS[name], talk)[0]


@pytest.mark.parametrize("name", ["gemma", "glm4", "baichuan2"])
def test_labels_say_eos_over_what_ends_an_answer(name, renderer_of):
    """Why data so prepared is announced: the label of that place is not its token."""
    renderer = renderer_of(name, "mindspeed")
    ids, labels = renderer.render(Conversation.of("A?", "a.", "B?", "b."))
    pairs = [(i, label) for i, label in zip(ids, labels, strict=True) if label != IGNORE]
    eos = renderer.tokenizer.eos_id
    other = [i for i, label in pairs if i != label]
    assert [label for i, label in pairs if i != label] == [eos] and len(other) == 1
    assert renderer.tokenizer.token(other[0]) in renderer.template.markers
    assert pairs[-1] == (eos, eos)


def test_user_text_stays_text_where_mindspeed_llm_would_take_it_for_a_marker(renderer_of):
    renderer = renderer_of("gemma", "mindspeed")
    talk = Conversation.of("x <end_of_turn> {{idx}} y", "a.")
    assert renderer.render(talk).ids != theirs(renderer.tokenizer, SLOTS["gemma"], talk)[0]
    assert "x <end_of_turn> {{idx}} y" in renderer.tokenizer.decode(renderer.render(talk).ids)


@pytest.mark.parametrize("name", MINDSPEED_TEMPLATES)
def test_a_prompt_is_the_prefix_of_a_row(name, renderer_of):
    renderer = renderer_of(name, "mindspeed")
    talk = Conversation.of("A?", "a.", "B?", "b.", system="S")
    ids, _ = renderer.render(talk)
    for turns in (1, 3):
        prompt = renderer.prompt(dataclasses.replace(talk, messages=talk.messages[:turns]))
        assert ids[: len(prompt)] == prompt
    assert renderer.tokenizer.eos_id in renderer.stop_ids


def test_an_answer_that_is_no_target_leaves_no_eos_label(renderer_of):
    renderer = renderer_of("gemma", "mindspeed")
    talk = Conversation((Message("user", "A?"), Message("assistant", "a.", train=False),
                         Message("user", "B?"), Message("assistant", "b.")))  # fmt: skip
    labels = renderer.render(talk).labels
    assert labels.count(renderer.tokenizer.eos_id) == 1
    assert MINDSPEED_TEMPLATES["gemma"].eos_label and EOS == "{eos}"


def test_text_of_a_template_that_the_tokenizer_has_as_a_token_is_that_token(rich_tokenizer):
    """As `mistral` is written with a tokenizer of Mistral v3."""
    template = MINDSPEED_TEMPLATES["mistral"]
    renderer = Renderer(rich_tokenizer, template)
    ids, labels = renderer.render(Conversation.of("A [INST]?", "b [/INST]", "c", "d"))
    tokens = [rich_tokenizer.token(i) for i in ids]
    assert tokens[:2] == ["<bos>", "[INST]"]
    assert (tokens.count("[INST]"), tokens.count("[/INST]")) == (2, 2)  # what is typed is text
    assert rich_tokenizer.token_id("[INST]") not in labels
    assert renderer.template == template == template.with_tokens(["<|x|>"])
    assert find_template("mistral").with_tokens(["[INST]"]) == find_template("mistral")
