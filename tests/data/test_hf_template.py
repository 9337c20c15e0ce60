"""Tests of mindspeed_llm.data.hf_template."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import TemplateError

TALKS = (
    Conversation.of("A?", "a.", "B?", "b."),
    Conversation.of(" hi \n", "\nyes ", "x <end_of_turn> <|im_end|> {{ 7*7 }}", "b."),
    Conversation((Message("user", "A"), Message("assistant", "a", train=False),
                  Message("user", "B"), Message("assistant", "b"))),
)  # fmt: skip


def load(make_tokenizer_dir, directory, source):
    return load_tokenizer(make_tokenizer_dir(directory, chat_template=source))


@pytest.mark.parametrize("name", ["gemma", "gemma3", "chatml", "qwen", "llama3", "smollm2"])
def test_it_equals_the_table_in_ids_labels_and_prompts(name, jinja, make_tokenizer_dir, tmp_path):
    tokenizer = load(make_tokenizer_dir, tmp_path / "t", jinja[name])
    own, table = (
        Renderer(tokenizer, HfChatTemplate(tokenizer)),
        Renderer(tokenizer, find_template(name)),
    )
    assert own.end_id == table.end_id
    for talk in TALKS:
        assert own.render(talk) == table.render(talk)
        opened = dataclasses.replace(talk, messages=talk.messages[:3])
        assert own.prompt(opened) == table.prompt(opened)
    if name != "gemma":
        talk = dataclasses.replace(TALKS[0], system="Be brief.")
        assert own.render(talk) == table.render(talk)


def refused(make_tokenizer_dir, tmp_path, source, talk=TALKS[0]):
    tokenizer = load(make_tokenizer_dir, tmp_path / "t", source)
    with pytest.raises(TemplateError) as caught:
        Renderer(tokenizer, HfChatTemplate(tokenizer)).render(talk)
    return str(caught.value)


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    with pytest.raises(TemplateError, match="no chat template"):
        HfChatTemplate(tokenizer)


def test_a_template_that_rewrites_contents_is_refused(jinja, make_tokenizer_dir, tmp_path):
    source = jinja["chatml"].replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    talk = Conversation.of("A?", "<think>so</think>a.")
    assert "depends on what the turns say" in refused(make_tokenizer_dir, tmp_path, source, talk)


def test_a_template_whose_training_prefix_is_no_prompt_is_refused(
    jinja, make_tokenizer_dir, tmp_path
):
    source = jinja["chatml"].replace(
        "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")  # fmt: skip
    assert "not the prompt it makes" in refused(make_tokenizer_dir, tmp_path, source)


def test_a_template_that_loses_turns_is_refused(jinja, make_tokenizer_dir, tmp_path):
    source = jinja["chatml"].replace("for message in messages", "for message in messages[-2:]")
    assert "leaves out" in refused(make_tokenizer_dir, tmp_path, source)


def test_a_template_without_end_of_turn_is_refused(make_tokenizer_dir, tmp_path):
    source = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    assert "no special token ends an answer" in refused(make_tokenizer_dir, tmp_path, source)


def test_what_the_template_refuses_is_said(jinja, make_tokenizer_dir, tmp_path):
    talk = dataclasses.replace(TALKS[0], system="S")
    assert "System role not supported" in refused(
        make_tokenizer_dir, tmp_path, jinja["gemma"], talk
    )


def test_templates_run_in_a_sandbox(make_tokenizer_dir, tmp_path):
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    assert "unsafe" in refused(make_tokenizer_dir, tmp_path, source)
