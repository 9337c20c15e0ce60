"""Tests of mindspeed_llm.config.carried: a launch line of another project is answered at once."""

import re

import pytest

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.config import carried
from mindspeed_llm.errors import ConfigError

LEAST = "--load HF --data-path rows --seq-length 32 --train-iters 4 --lr 1e-3".split()


def test_no_flag_has_two_answers():
    flags = " ".join(carried._WHY.values()).split()
    assert len(flags) == len(set(flags)) == len(carried.REFUSED)


def test_all_flags_of_a_launcher_are_answered_in_one_message():
    line = """--use-mcore-models --transformer-impl local --no-rope-fusion --swap-attention
        --reuse-fp32-param --rope-scaling-type llama3 --attention-dropout 0.0 --log-throughput
        --no-save-optim --output_dir out --tokenizer-model=x --swap-attention --lr-decay-stile x"""
    with pytest.raises(ConfigError) as failure:
        read_settings([*LEAST, *line.split()])
    first, *said = str(failure.value).split("\n  ")
    assert first == "posttrain_gpt.py: 7 flags cannot be taken (see posttrain_gpt.py --help)"
    assert [re.search(r"--[\w-]+", text).group() for text in said] == [
        "--swap-attention", "--reuse-fp32-param", "--rope-scaling-type", "--no-save-optim",
        "--output_dir", "--tokenizer-model", "--lr-decay-stile",
    ]  # fmt: skip
    assert said[4].endswith("the flag is --save") and said[6].endswith("mean --lr-decay-style?")


def test_a_statement_has_the_value_that_is_true():
    read_settings([*LEAST, "--transformer-impl", "local"])
    with pytest.raises(ConfigError, match="--transformer-impl: invalid choice.*'local'"):
        read_settings([*LEAST, "--transformer-impl", "transformer_engine"])


def test_what_is_not_like_any_flag_is_compared_with_none():
    with pytest.raises(ConfigError, match=r"unknown flag --enable-msa \(see"):
        read_settings([*LEAST, "--enable-msa"])
