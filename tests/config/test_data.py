"""Tests of mindspeed_llm.config.data."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.config.flags import parse
from mindspeed_llm.errors import ConfigError

NEEDED = [
    "--input",
    "a.json",
    "b.json",
    "--tokenizer-name-or-path",
    "tok",
    "--output-prefix",
    "out/x",
]


PLAIN = ["--handler-name", "GeneralPretrainHandler"]


def read(*more: str) -> PreprocessConfig:
    return parse([*NEEDED, *more], PreprocessConfig, prog="preprocess_data.py")[0]


def test_defaults_and_types():
    config = read("--prompt-type", "gemma")
    assert config.input == ("a.json", "b.json")
    assert config.output_prefix == Path("out/x")
    assert config.handler_name == "AlpacaStyleInstructionHandler"
    assert (config.workers, config.on_bad_row, config.seq_length) == (1, "limit", None)
    assert config.verify_template and not config.uses_hf_template
    assert not read("--prompt-type", "gemma", "--no-verify-template").verify_template


def test_the_tokenizers_template_has_two_spellings():
    assert read("--prompt-type", "hf").uses_hf_template
    assert read("--hf-chat-template").uses_hf_template


def test_plain_text_needs_no_template():
    config = read(*PLAIN, "--json-keys", "content", "--append-eod")
    assert config.json_keys == ("content",) and config.append_eod and config.prompt_type is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "no chat template"),
        (["--prompt-type", "gemma", "--hf-chat-template"], "two templates"),
        (["--prompt-type", "hf", "--template-compat", "mindspeed"], "--template-compat mindspeed"),
        (["--hf-chat-template", "--thinking", "keep"], "--thinking keep is for"),
        (
            ["--prompt-type", "gemma", "--thinking", "keep", "--template-compat", "mindspeed"],
            "has no place",
        ),
        ([*PLAIN, "--thinking", "keep"], "--thinking has no meaning"),
        (["--prompt-type", "gemma", "--workers", "0"], "--workers 0"),
        (["--prompt-type", "gemma", "--log-interval", "0"], "--log-interval 0"),
        (["--prompt-type", "gemma", "--seq-length", "1"], "--seq-length 1"),
        (["--prompt-type", "gemma", "--truncation", "oldest-turns"], "needs --seq-length"),
        (["--prompt-type", "gemma", "--pack"], "--pack needs --seq-length"),
        (["--prompt-type", "gemma", "--pad-to-multiple-of", "8"], "no effect without --pack"),
        (["--prompt-type", "gemma", "--pad-to-multiple-of", "0"], "expected at least 1"),
        (
            [
                "--prompt-type",
                "gemma",
                "--neat-pack",
                "--seq-length",
                "100",
                "--pad-to-multiple-of",
                "8",
            ],
            "--seq-length 100 is not a multiple",
        ),
        (["--prompt-type", "gemma", "--on-bad-row", "ignore"], "--on-bad-row"),
        (["--prompt-type", "gemma", "--map-keys", "[1]"], "JSON object"),
        (["--prompt-type", "gemma", "--append-eod"], "ends with its end-of-turn token"),
        (["--prompt-type", "gemma", "--json-keys", "input"], "is for GeneralPretrainHandler"),
        (["--prompt-type", "gemma", "--train-on", "none"], "cannot; use --train-on all or last"),
        (["--prompt-type", "gemma", "--strict", "--on-bad-row", "skip"], "give one of them"),
        (["--prompt-type", "gemma", "--truncation", "split", "--seq-length", "9"], "inside a turn"),
        ([*PLAIN, "--prompt-type", "gemma"], "--prompt-type has no meaning"),
        ([*PLAIN, "--map-keys", '{"a": "b"}'], "--map-keys has no meaning"),
        ([*PLAIN, "--train-on-inputs"], "--train-on-inputs has no meaning"),
        ([*PLAIN, "--train-on", "last"], "--train-on has no meaning"),
        ([*PLAIN, "--json-keys", "text", "title"], "run once for each"),
        ([*PLAIN, "--truncation", "oldest-turns", "--seq-length", "9"], "has no turns"),
    ],
)
def test_wrong_settings_are_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        read(*more)
