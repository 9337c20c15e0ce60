"""Fixtures of the data tests: renderers over the tiny tokenizer; owns no test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
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
        "gemma": GEMMA, "gemma2": GEMMA, "gemma3": GEMMA3, "llama3": LLAMA3,
        "chatml": _chatml(None), "qwen": _chatml("You are a helpful assistant."),
        "qwen2.5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        "smollm2": _chatml(
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    }  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer_dir: Path) -> Tokenizer:
    """The tiny tokenizer."""
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def renderer_of(tokenizer: Tokenizer) -> Callable[[str], Renderer]:
    """`renderer_of("gemma")`."""
    return lambda name: Renderer(tokenizer, find_template(name))
