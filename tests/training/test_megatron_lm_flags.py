"""Tests of mindspeed_llm.training.megatron_lm_flags."""

from __future__ import annotations

import argparse

import pytest

from mindspeed_llm.training.megatron_lm_flags import add_flags, settle


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory, tiny_tokenizer_dir, tiny_sft_data):
    """Prefixes of a plain data set and of one packed into rows of 64."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "plain": str(tiny_sft_data(folder / "plain", tiny_tokenizer_dir)),
        "packed": str(tiny_sft_data(folder / "packed", tiny_tokenizer_dir, capacity=64)),
        "other": str(tiny_sft_data(folder / "other", tiny_tokenizer_dir, template="chatml")),
    }


def parse(*words, prompt_type=False):
    """Flags as Megatron-LM has them, then ours; the message of an error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer-type", choices=["HuggingFaceTokenizer"])
    parser.add_argument("--data-path", nargs="*")
    for flag in ("--tokenizer-model", "--split", "--dataloader-type", "--num-experts"):
        parser.add_argument(flag)
    for flag in ("--sft", "--mock-data", "--reset-position-ids", "--reset-attention-mask"):
        parser.add_argument(flag, action="store_true")
    for flag, value in (("--seq-length", 64), ("--micro-batch-size", 1),
                        ("--context-parallel-size", 1),
                        ("--pipeline-model-parallel-size", 1)):  # fmt: skip
        parser.add_argument(flag, type=int, default=value)
    parser.add_argument("--moe-token-dispatcher-type", default="allgather")
    if prompt_type:
        parser.add_argument("--prompt-type", default="the script's own")
    add_flags(parser)
    args = parser.parse_args(words)

    def fail(message):
        raise SystemExit(message)

    settle(args, fail)
    return args


def refused(*words):
    with pytest.raises(SystemExit) as error:
        parse(*words)
    return str(error.value)


def test_a_script_without_instruction_data_is_left_alone():
    args = parse("--tokenizer-type", "HuggingFaceTokenizer", "--mock-data")
    assert not args.is_instruction_dataset and not args.instruction_lengths_vary
    assert args.moe_token_dispatcher_type == "allgather"


def test_the_tokenizer_of_mindspeed_llm_is_megatrons():
    args = parse("--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path", "DIR")
    assert (args.tokenizer_type, args.tokenizer_model) == ("HuggingFaceTokenizer", "DIR")
    assert "--tokenizer-name-or-path DIRECTORY" in refused("--tokenizer-type", "PretrainedFromHF")


def test_a_flag_of_the_script_stays_its_own():
    assert parse(prompt_type=True).prompt_type == "the script's own"


@pytest.mark.parametrize("flag", ["--variable-seq-lengths", "--no-shuffle", "--padded-samples",
                                  "--full-shuffle-instruction-dataset", "--neat-pack"])  # fmt: skip
def test_no_flag_is_without_effect(flag):
    assert refused(flag) == f"{flag} has no effect without --is-instruction-dataset"


@pytest.mark.parametrize(("data", "words", "message"), [
    ("plain", ["--sft"], "--sft contradicts --is-instruction-dataset"),
    ("plain", ["--mock-data"], "--mock-data contradicts"),
    ("plain", ["--context-parallel-size", "2"], "use posttrain_gpt.py"),
    ("plain", ["--dataloader-type", "cyclic"], "use single"),
    ("plain", ["--neat-pack"], "prepare the data with --pack"),
    ("plain", ["--no-shuffle", "--full-shuffle-instruction-dataset"], "contradicts"),
    ("packed", ["--seq-length", "32"], "use --seq-length 64"),
    ("packed", ["--variable-seq-lengths"], "has no effect on"),
    ("packed", ["--prompt-type", "chatml"], "was prepared with gemma"),
])  # fmt: skip
def test_what_does_not_agree_is_said(prefixes, data, words, message):
    text = refused("--is-instruction-dataset", "--data-path", prefixes[data], *words)
    assert message in text


def test_data_sets_must_be_there_and_alike(prefixes, tmp_path):
    assert "needs --data-path" in refused("--is-instruction-dataset")
    lost = str(tmp_path / "lost")
    assert lost in refused("--is-instruction-dataset", "--data-path", lost)
    both = [prefixes["plain"], prefixes["other"]]
    assert "their template differs" in refused("--is-instruction-dataset", "--data-path", *both)


@pytest.mark.parametrize(("data", "words", "vary"), [
    ("plain", [], False),
    ("plain", ["--variable-seq-lengths"], True),
    ("packed", ["--micro-batch-size", "1"], False),
    ("packed", ["--micro-batch-size", "2"], True),
])  # fmt: skip
def test_stages_tell_each_other_lengths_that_vary(prefixes, data, words, vary):
    given = ["--is-instruction-dataset", "--data-path", prefixes[data], *words]
    assert not parse(*given).instruction_lengths_vary  # one stage has nobody to tell
    args = parse(*given, "--pipeline-model-parallel-size", "2")
    assert args.instruction_lengths_vary is vary
    assert args.moe_token_dispatcher_type == ("alltoall" if vary else "allgather")
