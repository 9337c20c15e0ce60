"""Tests of mindspeed_llm.data.verify."""

from __future__ import annotations

import dataclasses
import re

import pytest

from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.data.verify import verify_template
from mindspeed_llm.errors import TemplateError

TALK = Conversation.of("Remember why I came?", "Yes, I do.", "B?\n\nyes", "b.")


THOUGHT = Conversation.of("A?", "<think>\nso\n</think>\n\na.", "B?", "<think>x</think>b.")


@pytest.fixture
def verify(make_tokenizer_dir, every_marker, tmp_path):
    """`verify(name, jinja source, talks, thinking)` with a tokenizer that has every marker."""

    def run(name, source, talks=(TALK,), thinking=None, own=False):
        # Mistral's first tokenizers, and Llama 2's, have no [INST] token.
        text = () if name.startswith("mistral-v3") else ("[INST]", "[/INST]")
        markers = tuple(m for m in every_marker if m not in text)
        directory = make_tokenizer_dir(tmp_path / "v", markers=markers, chat_template=source)
        tokenizer = load_tokenizer(directory)
        template = HfChatTemplate(tokenizer) if own else find_template(name, thinking=thinking)
        return verify_template(Renderer(tokenizer, template), talks)

    return run


DOCUMENTED = [n for n in TEMPLATES if n not in ("baichuan2", "alpaca", "default", "empty", "trl")]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_template_equals_its_jinja_form(name, jinja, verify, caplog):
    talks = [TALK, dataclasses.replace(TALK, system="Be brief."), Conversation.of("<eos>", "\nHi"),
             THOUGHT, dataclasses.replace(THOUGHT, messages=THOUGHT.messages[:2])]  # fmt: skip
    compared = verify(name, jinja[name], talks)
    passed_over = 0
    if name in ("gemma", "gemma2") or name.startswith("mistral-v3"):
        passed_over += 3  # those refuse a system text, these move it
    if name == "deepseek3":
        passed_over += 2  # what it is asked to do with thinking is not what V3's template does
    assert compared == 4 + len(talks) - passed_over
    assert ("moves the system text" in caplog.text) == name.startswith("mistral-v3")


def test_thinking_that_is_kept_is_compared_in_single_answers(jinja, verify):
    single = dataclasses.replace(THOUGHT, messages=THOUGHT.messages[:2])
    assert verify("qwen3", jinja["qwen3"], [THOUGHT, single], thinking="keep") == 3
    with pytest.raises(TemplateError, match="qwen3 differs"):
        verify("qwen3", jinja["chatml"], [single], thinking="keep")


def test_an_end_that_the_tokenizers_template_lacks_is_a_difference_between_turns(jinja, verify):
    with pytest.raises(TemplateError, match="glm4 differs"):
        verify("glm4", jinja["glm4"].replace("{{ '<|' + m", "{{ '\n<|' + m"))


def test_a_marker_that_the_template_takes_for_text_is_a_difference(jinja, verify):
    with pytest.raises(TemplateError, match=r"'\[INST\]' \(id"):
        verify("mistral-v3", jinja["mistral-v1"])


def test_another_prompt_is_a_difference(jinja, verify):
    source = jinja["chatml"].replace("{{ '<|im_start|>assistant\n' }}",
                                     "{{ '<|im_start|>assistant\n<think>\n' }}")  # fmt: skip
    with pytest.raises(TemplateError, match="prompt of the last answer"):
        verify("chatml", source)


def test_nothing_to_compare_with(tokenizer):
    template = find_template("gemma")
    assert verify_template(Renderer(tokenizer, template), [TALK]) is None


def test_the_first_difference_is_shown_with_token_and_id(jinja, verify):
    with pytest.raises(TemplateError, match="chatml differs .* at token 1 ") as caught:
        verify("chatml", jinja["qwen"])
    text = str(caught.value)
    for word in ("user", "system"):
        assert re.search(rf"'{word}' \(id \d+\) in \.\.\.'<\|im_start\|>'", text)
    assert "'Hello.'" in text and "helpful assistant" in text
    assert "--hf-chat-template" in text and "--no-verify-template" in text


def test_a_difference_in_tokens_alone_is_shown(jinja, make_tokenizer_dir, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", chat_template=jinja["chatml"]))
    template = find_template("chatml")
    renderer = Renderer(tokenizer, template)
    right = renderer.tokenizer.encode_texts

    def wrong(texts, context):
        pairs = zip(texts, right(texts, context), strict=True)
        return [[7] if t == "\n" else ids for t, ids in pairs]

    monkeypatch.setattr(renderer.tokenizer, "encode_texts", wrong)
    with pytest.raises(TemplateError, match=r"\(token ids\), first at token"):
        verify_template(renderer, [TALK])


def test_a_trailing_answer_header_is_not_a_difference(jinja, verify):
    always = jinja["llama3"].replace("{% if add_generation_prompt %}", "{% if true %}")
    assert verify("llama3", always) == 5


def test_the_tokenizers_own_template_is_checked_by_its_ids(jinja, verify, monkeypatch):
    assert verify("hf", jinja["chatml"], own=True) == 2
    right = Tokenizer.encode_texts

    def wrong(self, texts, context):
        return [[5, *ids] for ids in right(self, texts, context)]

    monkeypatch.setattr(Tokenizer, "encode_texts", wrong)
    with pytest.raises(TemplateError, match="token ids"):
        verify("hf", jinja["chatml"], own=True)


def test_the_caller_may_say_what_to_do(jinja, make_tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", chat_template=jinja["qwen"]))
    with pytest.raises(TemplateError, match="Turn round$"):
        verify_template(Renderer(tokenizer, find_template("chatml")), mend="Turn round")
