"""A packed data set is trained as it was packed, and what launchers say of it must be true."""

import pytest

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.training.inputs import read_inputs


@pytest.fixture(scope="module")
def prefix(tmp_path_factory, tiny_sft_data, tiny_tokenizer_dir):
    return tiny_sft_data(tmp_path_factory.mktemp("packs") / "rows", tiny_tokenizer_dir, capacity=64)


def read(*command):
    settings, architecture = read_settings([str(part) for part in command])
    return read_inputs(settings, architecture, check_tokenizer=True).rows


def test_packed_rows_are_read_as_they_were_packed(flags, prefix):
    said = ["--neat-pack", "--reset-position-ids", "--reset-attention-mask"]
    rows = read(*flags, "--data-path", prefix, "--seq-length", 64, *said)
    assert 6 <= len(rows.train) < 24
    sample = rows.train[0]
    assert len(sample["input_ids"]) == len(sample["segment_ids"]) == sample["cu_seqlens"][-1] == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], r"--seq-length is 32, but --data-path \S+ was packed into rows of 64 tokens"),
        (["--seq-length", 128], "--seq-length is 128, .* rows of 64 tokens; use --seq-length 64"),
        (["--seq-length", 64, "--variable-seq-lengths"], "--variable-seq-lengths has no effect"),
    ],
)
def test_another_length_is_refused(flags, prefix, changes, words):
    with pytest.raises(ConfigError, match=words):
        read(*flags, "--data-path", prefix, *changes)


def test_rows_may_be_longer_than_the_context_and_conversations_not(
    flags, tmp_path, tiny_sft_data, tiny_tokenizer_dir
):
    long = tiny_sft_data(tmp_path / "long", tiny_tokenizer_dir, capacity=192)
    assert len(read(*flags, "--data-path", long, "--seq-length", 192).train) > 1
    data = tiny_sft_data(tmp_path / "rows", tiny_tokenizer_dir, capacity=192, longest=150)
    with pytest.raises(ConfigError, match=r"conversation of 1\d\d tokens, beyond .* 128 positions"):
        read(*flags, "--data-path", data, "--seq-length", 192)


@pytest.mark.parametrize("flag", ["--neat-pack", "--reset-position-ids", "--reset-attention-mask"])
def test_a_statement_that_is_not_true_is_refused(flags, flag):
    with pytest.raises(ConfigError, match=f"{flag} says that rows hold several conversations"):
        read(*flags, flag)


def test_longrope_needs_rows_within_the_original_context(flags, prefix, tiny_chat_model):
    asked = [*flags, "--load", tiny_chat_model("phi3"), "--data-path", prefix]
    with pytest.raises(ConfigError, match="turns sequences of more than 16 tokens otherwise"):
        read(*asked, "--seq-length", 64)
