"""Owns turning the tokenizer inside a GGUF file into tokenizer.json and tokenizer_config.json.

It reads key/value pairs only; it knows no weights, and how text is rendered is the template's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mindspeed_llm.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types: 1 normal, 3 control, 4 user-defined
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(*, split_words: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)


def _splitter(kind: str) -> pre_tokenizers.PreTokenizer:
    """How words are cut before the merges, by llama.cpp's name of it (`tokenizer.ggml.pre`)."""
    if kind in ("gpt-2", "default"):
        return _bytes(split_words=True)
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, _bytes(split_words=True)])
    if kind == "llama-bpe":
        words = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_WORDS), "isolated")
        return pre_tokenizers.Sequence([words, _bytes(split_words=False)])
    raise ModelError(f"tokenizer.ggml.pre is {kind!r}; expected smollm, gpt-2, default or "
                     "llama-bpe; use the model's own Hugging Face directory")  # fmt: skip


def build_tokenizer(values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The byte-level BPE tokenizer described by a GGUF file's key/value pairs.

    Raises:
        ModelError: another kind of tokenizer, or lists whose lengths do not agree.
    """
    kind = values.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(f"tokenizer.ggml.model is {kind!r}; expected 'gpt2' (byte-level BPE); use "
                         "the model's own Hugging Face directory")  # fmt: skip
    tokens: Sequence[str] = values["tokenizer.ggml.tokens"]
    types: Sequence[int] = values["tokenizer.ggml.token_type"]
    if len(tokens) != len(types):
        raise ModelError(f"the GGUF tokenizer has {len(tokens)} tokens but {len(types)} types")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError("the GGUF tokenizer names a token twice; it is damaged")
    merges = [_pair(merge) for merge in values["tokenizer.ggml.merges"]]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as err:  # the library's only error type: a merge of tokens that do not exist
        raise ModelError(f"the GGUF tokenizer's merges do not fit its tokens: {err}") from err
    backend.pre_tokenizer = _splitter(values.get("tokenizer.ggml.pre", "default"))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_added(tokens[i]) for i, t in enumerate(types) if t == _CONTROL])
    backend.add_tokens([_added(tokens[i]) for i, t in enumerate(types) if t == _USER_DEFINED])
    return backend


def _added(token: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, normalized=False)


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def tokenizer_files(values: Mapping[str, Any]) -> dict[str, str]:
    """File name -> text of a Hugging Face tokenizer, its chat template included.

    Raises:
        ModelError: see `build_tokenizer`; or tokens are added in front of a text, which the
            tokenizers of the supported models do not.
    """
    backend = build_tokenizer(values)
    tokens = values["tokenizer.ggml.tokens"]
    if values.get("tokenizer.ggml.add_bos_token"):
        raise ModelError("the GGUF tokenizer adds a BOS token to every text, which is not "
                         "supported; use the model's own Hugging Face directory")  # fmt: skip
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"),
                      ("unk_token", "unknown"), ("pad_token", "padding")):  # fmt: skip
        index = values.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[name] = tokens[index]
    if "llama.context_length" in values:
        config["model_max_length"] = values["llama.context_length"]
    if "tokenizer.chat_template" in values:
        config["chat_template"] = values["tokenizer.chat_template"]
    return {
        "tokenizer.json": backend.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }
