"""Owns reading a tokenizer's directory with the tokenizers library alone, where that is certain to
give what transformers gives: it is read in a second instead of six, and no code is ever run.

It knows nothing of texts to encode and of templates to run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from mindspeed_llm.errors import DataError

# Classes of transformers whose tokenizer is that of tokenizer.json, id by id. Others rebuild theirs
# (LlamaTokenizer puts blanks elsewhere) or complete the named tokens by their own defaults.
_PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")
_SAME: dict[str, dict[str, str]] = {  # with the special tokens that the class itself names
    "GemmaTokenizer": {"mask_token": "<mask>"}, "Qwen2Tokenizer": {},
}  # fmt: skip
_NAMED = ("bos_token", "eos_token", "pad_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_LEGACY = ("special_tokens_map.json", "added_tokens.json")


class TokenizerFiles(NamedTuple):
    """What a directory holds.

    `named` are the special tokens by the names that chat templates use (`bos_token`, ...).
    """

    backend: tokenizers.Tokenizer
    named: dict[str, str]
    chat_template: str | None


def read_files(directory: Path) -> TokenizerFiles | None:
    """The tokenizer of a directory, or None where transformers might read another one.

    Raises:
        DataError: tokenizer.json or tokenizer_config.json is damaged.
    """
    config = _object(directory / "tokenizer_config.json")
    file = directory / "tokenizer.json"
    if config is None or not file.is_file() or not (_is_plain(config) or _is_certain(config)):
        return None
    described = config.get("added_tokens_decoder")
    if described is None and any((directory / name).is_file() for name in _LEGACY):
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as err:  # the library raises nothing narrower
        raise DataError(f"{file}: not a tokenizer of the tokenizers library ({err}); get the file "
                        "anew") from err  # fmt: skip
    by_class = {} if _is_plain(config) else _SAME[_class(config)]
    named = {name: text for name, value in {**by_class, **config}.items()
             if name.endswith("_token") and (text := _content(value)) is not None}  # fmt: skip
    needed = [*named.values(), *_listed(config)]
    if not _complete(backend, described or {}, needed, set(by_class.values())):
        return None
    return TokenizerFiles(backend, named, chat_template(directory, config))


def chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a directory: its file, or that of tokenizer_config.json."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found if isinstance(found, str) else None


def _object(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise DataError(f"{file}: not JSON ({err}); get the file anew") from err
    if not isinstance(value, dict):
        raise DataError(f"{file}: not a JSON object; get the file anew")
    return value


def _class(config: Mapping[str, Any]) -> str:
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def _is_plain(config: Mapping[str, Any]) -> bool:
    # Code that comes with a checkpoint is never run: its tokenizer.json is all there is.
    return _class(config) in _PLAIN or "auto_map" in config


def _is_certain(config: Mapping[str, Any]) -> bool:
    named = all(name in config for name in _NAMED)
    return _class(config) in _SAME and named and "added_tokens_decoder" in config


def _content(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _listed(config: Mapping[str, Any]) -> list[str]:
    found = [config.get(key) or () for key in _LISTS]
    values = [v for entry in found
              for v in (entry.values() if isinstance(entry, Mapping) else entry)]  # fmt: skip
    return [text for value in values if (text := _content(value)) is not None]


def _complete(backend: tokenizers.Tokenizer, described: Mapping[str, Any],
              needed: list[str], special: set[str]) -> bool:  # fmt: skip
    """Make special what the configuration or the class says is; False where the configuration
    says more than tokenizer.json."""
    own = {token.content: (index, token)
           for index, token in backend.get_added_tokens_decoder().items()}  # fmt: skip
    if not set(needed) <= set(own):
        return False
    for index, entry in described.items():
        at, token = own.get(entry.get("content"), (-1, None))
        if token is None or at != int(index):
            return False
        flags = ("lstrip", "rstrip", "normalized", "single_word")
        if any(entry.get(flag, getattr(token, flag)) != getattr(token, flag) for flag in flags):
            return False
        if token.special and not entry.get("special", True):
            return False
        if entry.get("special"):
            special = special | {token.content}
    loose = [token for _, token in own.values() if token.content in special and not token.special]
    for token in loose:
        token.special = True
    if loose:
        backend.add_special_tokens(loose)
    return True
