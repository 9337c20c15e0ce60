"""A model goes with its own tokenizer, whoever asks and whatever the flags are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mindspeed_llm.data.model_tokenizer import model_tokenizer
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.models.registry import read_model


@pytest.fixture
def other(tmp_path, make_tokenizer_dir) -> Path:
    """As large as the tiny tokenizer, but with other tokens."""
    return make_tokenizer_dir(tmp_path / "other", markers=("<pad>", "<eos>", "<bos>", "<x>"))


def test_the_models_own_is_taken_or_its_equal(tiny_chat_dir, tiny_tokenizer_dir):
    model = read_model(tiny_chat_dir)
    own = model_tokenizer(None, tiny_chat_dir, model)
    given = model_tokenizer(tiny_tokenizer_dir, tiny_chat_dir, model)
    assert own.sha256 == given.sha256
    assert own.encode_text("Hello") == given.encode_text("Hello")


def test_another_models_is_refused_in_the_callers_words(tiny_chat_dir, other):
    model = read_model(tiny_chat_dir)
    with pytest.raises(ConfigError, match=r"^--tokenizer-model .*other .*is not the tokenizer of "
                       r"the model at --load-dir"):  # fmt: skip
        model_tokenizer(other, tiny_chat_dir, model, flag="--tokenizer-model",
                        model_flag="--load-dir")  # fmt: skip


def test_a_model_without_tokenizer_takes_one_that_is_not_too_large(
    tiny_hf_model, tiny_tokenizer_dir, tmp_path
):
    bare = tiny_hf_model("llama", tmp_path / "bare", vocab_size=480)
    assert model_tokenizer(tiny_tokenizer_dir, bare, read_model(bare)).vocab_size <= 480
    with pytest.raises(ConfigError, match="holds no tokenizer; give --tokenizer-name-or-path"):
        model_tokenizer(None, bare, read_model(bare))
    small = tiny_hf_model("llama", tmp_path / "small")
    with pytest.raises(ConfigError, match=r"has \d+ tokens, the model of --load has 131"):
        model_tokenizer(tiny_tokenizer_dir, small, read_model(small))


def test_a_directory_without_a_tokenizer(tiny_chat_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="--tokenizer-name-or-path .*no tokenizer there"):
        model_tokenizer(tmp_path / "empty", tiny_chat_dir, read_model(tiny_chat_dir))


def test_settings_of_a_tokenizer_alone_are_none(tiny_chat_dir, tiny_tokenizer_dir, tmp_path):
    bare = shutil.copytree(tiny_chat_dir, tmp_path / "bare",
                           ignore=shutil.ignore_patterns("tokenizer.json"))  # fmt: skip
    assert model_tokenizer(tiny_tokenizer_dir, bare, read_model(bare)).vocab_size <= 480
