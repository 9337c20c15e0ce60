"""Fixtures of the data tests: renderers over the tiny tokenizer; owns no test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mindspeed_llm.data.mindspeed_templates import MINDSPEED_TEMPLATES
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% set ns = namespace(first='') %}{% if messages[0]['role'] == 'system' %}"
    "{% set ns.first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (ns.first if loop.first else '') }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{% set s = '' %}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + s | trim }}"
    "{{ '<|eot_id|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# What each model's card documents, said once more in jinja.
_THINK = (
    "{% set said = m['content'] %}{% if m['role'] == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}{% if loop.last %}"
    "{% set said = '<think>\n' + thought + '\n</think>\n\n' + said.lstrip('\n') %}{% endif %}"
    "{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}" + _THINK +
    "{{ '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
LLAMA2 = (
    "{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((first if loop.first else '') + m['content']).strip() }}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


def _mistral(blank: str, behind: str, lead: str, where: str, trim: str = "") -> str:
    """`where` the system text stands: in the `first` question, or in the `last` turn if asked."""
    return (
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set s = '' %}{% set turns = messages %}"
        "{% endif %}{{ bos_token }}{% for m in turns %}{% if m['role'] == 'user' %}{{ '" + lead +
        "[INST]" + blank + "' + (s if loop." + where + " else '') + m['content'] + '" + behind +
        "[/INST]' }}{% else %}{{ '" + blank + "' + m['content']" + trim +
        " + eos_token }}{% endif %}"
        "{% endfor %}"
    )  # fmt: skip


DEEPSEEK2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ 'User: ' + m['content'] + '\n\n' }}{% elif m['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + m['content'] + eos_token }}{% else %}{{ m['content'] + '\n\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
DEEPSEEK3 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}{% else %}{{ m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)


def _chatml(default_system: str | None) -> str:
    default = "" if default_system is None else (
        "{% if loop.first and message['role'] != 'system' %}"
        "{{ '<|im_start|>system\n" + default_system + "<|im_end|>\n' }}{% endif %}")  # fmt: skip
    return ("{% for message in messages %}" + default +
            "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
            "{% endif %}")  # fmt: skip


@pytest.fixture(scope="session")
def jinja() -> dict[str, str]:
    """Chat templates that say in jinja what the table says in data (template name -> source)."""
    return {
        "gemma": GEMMA, "gemma2": GEMMA, "gemma3": GEMMA3, "llama3": LLAMA3, "llama3.1": LLAMA31,
        "chatml": _chatml(None), "qwen": _chatml("You are a helpful assistant."),
        "qwen2.5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        "smollm2": _chatml(
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        "qwen3": QWEN3, "intern2": "{{ bos_token }}" + _chatml(None), "llama2": LLAMA2,
        "mistral": _mistral(" ", " ", " ", "first"), "mixtral": _mistral(" ", " ", " ", "first"),
        "mistral-v1": _mistral(" ", " ", " ", "first"),
        "mistral-v3": _mistral(" ", "", "", "last", "|trim"),
        "mistral-v3-tekken": _mistral("", "", "", "last"), "deepseek2": DEEPSEEK2,
        "deepseek2-lite": DEEPSEEK2, "deepseek3": DEEPSEEK3, "glm4": GLM4, "phi3": PHI3,
    }  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer_dir: Path) -> Tokenizer:
    """The tiny tokenizer."""
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def every_marker(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Special tokens of the tiny tokenizer and of every template there is."""
    own = [tokenizer.token(i) for i in sorted(tokenizer.special_ids)]
    tables = [*TEMPLATES.values(), *MINDSPEED_TEMPLATES.values()]
    return tuple(dict.fromkeys([*own, *(m for t in tables for m in t.written)]))


@pytest.fixture(scope="session")
def rich_tokenizer(
    make_tokenizer_dir: Callable[..., Path], every_marker: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Tokenizer:  # fmt: skip
    """A tiny tokenizer that has the markers of every template."""
    directory = tmp_path_factory.mktemp("rich") / "tokenizer"
    return load_tokenizer(make_tokenizer_dir(directory, markers=every_marker))


@pytest.fixture(scope="session")
def renderer_of(tokenizer: Tokenizer, rich_tokenizer: Tokenizer) -> Callable[..., Renderer]:
    """`renderer_of("gemma")`, `renderer_of("qwen3", thinking="keep")`: over the tiny tokenizer, or
    over the rich one where the tiny one lacks a marker."""

    def make(name: str, compat: str | None = None, thinking: str | None = None) -> Renderer:
        template = find_template(name, compat, thinking)
        own = {tokenizer.token(i) for i in tokenizer.special_ids}
        return Renderer(tokenizer if own.issuperset(template.markers) else rich_tokenizer, template)

    return make
