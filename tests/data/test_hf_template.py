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


@pytest.fixture
def load(make_tokenizer_dir, every_marker, tmp_path):
    """`load(source)`: a tokenizer with that chat template; `[INST]` is text, as with Llama 2."""
    text = ("[INST]", "[/INST]")

    def make(source, without=text):
        markers = tuple(m for m in every_marker if m not in without)
        return load_tokenizer(make_tokenizer_dir(tmp_path / "t", markers=markers,
                                                 chat_template=source))  # fmt: skip

    return make


SAME = ["gemma", "gemma3", "chatml", "qwen", "llama3", "smollm2", "intern2", "llama2", "mistral",
        "mistral-v3", "mistral-v3-tekken", "deepseek2", "deepseek3", "phi3"]  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_it_equals_the_table_in_ids_labels_and_prompts(name, jinja, load):
    tokenizer = load(jinja[name], without=() if "-v3" in name else ("[INST]", "[/INST]"))
    own, table = (
        Renderer(tokenizer, HfChatTemplate(tokenizer)),
        Renderer(tokenizer, find_template(name)),
    )
    assert own.end_id == table.end_id
    talks = list(TALKS)
    if name != "gemma" and "-v3" not in name:
        talks.append(dataclasses.replace(TALKS[0], system="Be brief."))
    for talk in talks:
        assert own.render(talk) == table.render(talk)
        opened = dataclasses.replace(talk, messages=talk.messages[:3])
        assert own.prompt(opened) == table.prompt(opened)
    if table.template.after or name == "llama3":  # a marker of its own ends a question
        both = dataclasses.replace(TALKS[0], train_inputs=True)
        assert own.render(both) == table.render(both)


def test_a_thinking_template_renders_single_answers_and_refuses_more(jinja, load):
    tokenizer = load(jinja["qwen3"])
    own = Renderer(tokenizer, HfChatTemplate(tokenizer))
    table = Renderer(tokenizer, find_template("qwen3"))
    single = Conversation.of("A?", "a.", system="S")
    assert own.render(single) == table.render(single)
    with pytest.raises(TemplateError, match="writes an answer otherwise once more turns follow"):
        own.render(TALKS[0])


GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_generation_blocks_say_what_is_trained(load):
    tokenizer = load(GENERATION)
    own = Renderer(tokenizer, HfChatTemplate(tokenizer))
    table = Renderer(tokenizer, find_template("chatml"))
    for talk in TALKS:
        assert own.render(talk) == table.render(talk), "a line end after the end is not trained"
    opened = dataclasses.replace(TALKS[0], messages=TALKS[0].messages[:3])
    assert own.prompt(opened) == table.prompt(opened)


def test_an_answer_outside_of_generation_blocks_is_not_trained(load):
    last = GENERATION.replace("{% if m['role'] == 'assistant' %}",
                              "{% if m['role'] == 'assistant' and loop.index0 > 1 %}")  # fmt: skip
    tokenizer = load(last)
    own = Renderer(tokenizer, HfChatTemplate(tokenizer))
    silent = dataclasses.replace(TALKS[0].messages[1], train=False)
    talk = dataclasses.replace(TALKS[0], messages=(TALKS[0].messages[0], silent,
                                                   *TALKS[0].messages[2:]))  # fmt: skip
    assert own.render(TALKS[0]) == Renderer(tokenizer, find_template("chatml")).render(talk)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("+ '<|im_end|>\n' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>\n' }}",
         "leaves out the end of"),
        ("{% generation %}{{ m", "{{ '\n' }}{% generation %}{{ m", "what is generated before"),
    ],
)  # fmt: skip
def test_a_generation_block_without_all_of_an_answer_is_refused(load, old, new, what):
    tokenizer = load(GENERATION.replace(old, new, 1))
    with pytest.raises(TemplateError, match=what):
        HfChatTemplate(tokenizer) and Renderer(tokenizer, HfChatTemplate(tokenizer)).render(
            TALKS[0]
        )


def test_a_system_text_that_the_template_trims_is_trimmed(jinja, load):
    tokenizer = load(jinja["llama3"])
    own, table = HfChatTemplate(tokenizer), find_template("llama3")
    talk = dataclasses.replace(TALKS[0], system=" S \n")
    assert Renderer(tokenizer, own).render(talk) == Renderer(tokenizer, table).render(talk)


def refused(make_tokenizer_dir, tmp_path, source, talk=TALKS[0]):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", chat_template=source))
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
