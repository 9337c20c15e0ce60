"""Tests of mindspeed_llm.data.verify."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.verify import verify_template
from mindspeed_llm.errors import TemplateError

TALK = Conversation.of("Remember why I came?", "Yes, I do.", "B?\n\nyes", "b.")


def verify(name, source, make_tokenizer_dir, directory, talks=(TALK,)):
    tokenizer = load_tokenizer(make_tokenizer_dir(directory, chat_template=source))
    template = find_template(name)
    return verify_template(Renderer(tokenizer, template), talks)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_equals_its_jinja_form(name, jinja, make_tokenizer_dir, tmp_path):
    talks = [TALK, dataclasses.replace(TALK, system="Be brief."), Conversation.of("<eos>", "\nHi")]
    compared = verify(name, jinja[name], make_tokenizer_dir, tmp_path / "t", talks)
    assert compared == (3 if name in ("gemma", "gemma2") else 4)  # those refuse a system text


def test_nothing_to_compare_with(tokenizer):
    template = find_template("gemma")
    assert verify_template(Renderer(tokenizer, template), [TALK]) is None


def test_the_first_difference_in_text_is_shown(jinja, make_tokenizer_dir, tmp_path):
    with pytest.raises(TemplateError, match="chatml differs .* at text 12") as caught:
        verify("chatml", jinja["qwen"], make_tokenizer_dir, tmp_path / "t")
    assert "helpful assistant" in str(caught.value) and "--hf-chat-template" in str(caught.value)


def test_a_difference_in_tokens_alone_is_shown(jinja, make_tokenizer_dir, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", chat_template=jinja["chatml"]))
    template = find_template("chatml")
    renderer = Renderer(tokenizer, template)
    right = renderer.tokenizer.encode_texts

    def wrong(texts):
        return [[7] if t == "\n" else ids for t, ids in zip(texts, right(texts), strict=True)]

    monkeypatch.setattr(renderer.tokenizer, "encode_texts", wrong)
    with pytest.raises(TemplateError, match="at token"):
        verify_template(renderer, [TALK])


def test_a_trailing_answer_header_is_not_a_difference(jinja, make_tokenizer_dir, tmp_path):
    always = jinja["llama3"].replace("{% if add_generation_prompt %}", "{% if true %}")
    assert verify("llama3", always, make_tokenizer_dir, tmp_path / "t") == 2


def test_the_tokenizers_own_template_is_checked_by_its_ids(jinja, make_tokenizer_dir, tmp_path):
    directory = make_tokenizer_dir(tmp_path / "t", chat_template=jinja["chatml"])
    tokenizer = load_tokenizer(directory)
    assert verify_template(Renderer(tokenizer, HfChatTemplate(tokenizer)), [TALK]) == 2
    # A tokenizer that puts a blank before every piece makes other ids of pieces than of the whole.
    spec = json.loads((directory / "tokenizer.json").read_text())
    spec["normalizer"] = {"type": "Prepend", "prepend": "_"}
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(directory)
    with pytest.raises(TemplateError, match="at token"):
        verify_template(Renderer(tokenizer, HfChatTemplate(tokenizer)), [TALK])
