"""Owns the rule that a model is used with its own tokenizer; knows neither weights nor commands."""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.errors import ConfigError

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of these, or none there


def model_tokenizer(
    given: Path | None,
    directory: Path,
    model: ModelConfig,
    *,
    flag: str = "--tokenizer-name-or-path",
    model_flag: str = "--load",
) -> Tokenizer:
    """The tokenizer at `given`, or that of the model's `directory`; with both, they are the same.

    Args:
        given: Hugging Face directory of a tokenizer, or None.
        directory: where the model's config.json is, with a tokenizer beside it or without.
        flag, model_flag: what the user calls the two places.

    Raises:
        ConfigError: none, one of another model, or one with more tokens than the model.
        DataError: a directory whose tokenizer cannot be read.
    """
    bundled = any((directory / name).is_file() for name in _VOCABULARIES)
    own = load_tokenizer(directory, model_flag) if bundled else None
    tokenizer = own if given is None else load_tokenizer(given, flag)
    if tokenizer is None:
        raise ConfigError(f"{model_flag}: {directory} holds no tokenizer; give {flag} DIRECTORY")
    place = f"the tokenizer in {model_flag} {directory}" if given is None else f"{flag} {given}"
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"{place} has {tokenizer.vocab_size} tokens, the model of {model_flag} has "
            f"{model.vocab_size}; use the tokenizer of the model"
        )
    if own is not None and own.sha256 != tokenizer.sha256:
        raise ConfigError(
            f"{place} (vocabulary hash {tokenizer.sha256[:12]}) is not the tokenizer of the model "
            f"at {model_flag} ({own.sha256[:12]}); use that one"
        )
    return tokenizer
