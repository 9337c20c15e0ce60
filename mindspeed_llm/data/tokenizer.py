"""Owns loading a Hugging Face tokenizer and turning plain text and markers into ids.

Text is encoded with special tokens off: what a user types never becomes a marker.
It knows no template and no conversation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers

from mindspeed_llm.errors import DataError, TemplateError

# What a text follows. Many SentencePiece tokenizers put a blank before a text, some before the
# first of a row only, others also behind a special token, and none inside a running text.
Context = Literal["start", "marker", "text"]
_CONTEXTS: tuple[Context, ...] = ("start", "marker", "text")


class Tokenizer:
    """A tokenizer for contents (`encode_text`) and markers (`token_id`).

    Attributes:
        hf: the transformers tokenizer, for its chat template and for saving; None in a copy that
            was sent to another process.
        bos_token, eos_token: their texts, or None.
        bos_id, eos_id: ids, or None where the tokenizer has none.
        pad_id: padding id; eos, then 0, where the tokenizer has none (padding is told from text by
            lengths, never by this id).
        eos_ids: eos and every `eos_token_id` of generation_config.json.
        vocab_size: one more than the greatest id.
        sha256: hash of the vocabulary (ids, tokens, which are special).
        strips: added token -> whether it swallows the white space on its left, on its right; only
            those that do either.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, bos_token: str | None,
                 eos_token: str | None, pad_token: str | None, eos_ids: Sequence[int] = (),
                 hf: Any = None) -> None:  # fmt: skip
        # The backend is the caller's; `encode_special_tokens` below must not leak into it.
        self._set(backend.to_str())
        self.hf = hf
        self.bos_token, self.eos_token = bos_token, eos_token
        self.bos_id = None if bos_token is None else backend.token_to_id(bos_token)
        self.eos_id = None if eos_token is None else backend.token_to_id(eos_token)
        pad = None if pad_token is None else backend.token_to_id(pad_token)
        self.pad_id: int = next(i for i in (pad, self.eos_id, 0) if i is not None)
        own = () if self.eos_id is None else (self.eos_id,)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((*own, *eos_ids)))
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.special_ids = frozenset(
            index for index, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.strips = {t.content: (t.lstrip, t.rstrip)
                       for t in backend.get_added_tokens_decoder().values()
                       if t.lstrip or t.rstrip}  # fmt: skip
        self.sha256 = _fingerprint(backend, self.special_ids)

    def _set(self, spec: str) -> None:
        """Take the tokenizer that the JSON text `spec` defines."""
        made: dict[str, tokenizers.Tokenizer] = {}
        self._texts: dict[Context, tokenizers.Tokenizer] = {}
        for context in _CONTEXTS:
            adapted = _for_context(spec, context)
            if adapted not in made:
                made[adapted] = tokenizers.Tokenizer.from_str(adapted)
                made[adapted].no_padding()
                made[adapted].no_truncation()
                made[adapted].encode_special_tokens = True
            self._texts[context] = made[adapted]
        self._text = self._texts["marker"]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["hf"] = state["_text"] = None
        state["_texts"] = self._texts["start"].to_str()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set(state["_texts"])

    def encode_text(self, text: str, context: Context = "marker") -> list[int]:
        """Ids of plain text; special-token text in it is split into ordinary tokens.

        `context` is what precedes it: nothing ("start"), a special token, or more text.
        """
        return self._texts[context].encode(text, add_special_tokens=False).ids

    def encode_texts(self, texts: Sequence[str], context: Context = "marker") -> list[list[int]]:
        """`encode_text` of many texts in one call."""
        batch = self._texts[context].encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def spots(self, text: str, context: Context = "marker") -> list[tuple[int, int]]:
        """(start, end) in characters of each of `encode_text`'s tokens."""
        return self._texts[context].encode(text, add_special_tokens=False).offsets

    def guarding(self, markers: Sequence[str]) -> Tokenizer:
        """This tokenizer, or a copy in which `markers` are special too and so never come from text.

        Some tokenizers list their turn markers as ordinary added tokens, which plain text matches.
        """
        added = self._text.get_added_tokens_decoder()
        loose = {i for i, t in added.items() if t.content in markers and not t.special}
        if not loose:
            return self
        spec = json.loads(self._texts["start"].to_str())
        for token in spec["added_tokens"]:
            token["special"] = token["special"] or token["id"] in loose
        copy = object.__new__(Tokenizer)
        copy.__dict__.update(self.__dict__)
        copy._set(json.dumps(spec))
        copy.special_ids = self.special_ids | loose
        return copy

    def token_id(self, marker: str) -> int:
        """Id of a marker that must be exactly one token.

        Raises:
            TemplateError: the tokenizer has no such token; shows the pieces it makes of it.
        """
        index = self._text.token_to_id(marker)
        if index is None:
            pieces = self._text.encode(marker, add_special_tokens=False).tokens
            raise TemplateError(f"the template's marker {marker!r} is not one token of this "
                                f"tokenizer but {len(pieces)} pieces {pieces}: a model with it "
                                "cannot have learned this template. Choose the model's own "
                                "--prompt-type, or the right tokenizer directory")  # fmt: skip
        return index

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `ids`."""
        return self._text.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token(self, index: int) -> str:
        """The vocabulary's spelling of one id; empty for a padded row without a token."""
        return self._text.id_to_token(index) or ""


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_tokenizer(directory: str | Path, flag: str = "--tokenizer-name-or-path") -> Tokenizer:
    """Read the tokenizer of a Hugging Face directory, or of the directory of a tokenizer file.

    Never runs code from the directory and never asks the network.

    Raises:
        DataError: no such directory, no tokenizer in it, or not one of the `tokenizers` library.
    """
    path = Path(directory)
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        raise DataError(f"{flag} {directory}: no such directory; expected a Hugging Face directory "
                        "with tokenizer.json (or tokenizer.model)")  # fmt: skip
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise DataError(f"{flag} {directory}: no tokenizer there; expected one of "
                        f"{', '.join(_TOKENIZER_FILES)}")  # fmt: skip
    # Late: transformers takes seconds to import, and worker processes do without it.
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as err:
        first = str(err).strip().splitlines()
        raise DataError(f"{flag} {directory}: transformers cannot read a tokenizer there: "
                        f"{first[0] if first else type(err).__name__}") from err  # fmt: skip
    backend = getattr(hf, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise DataError(
            f"{flag} {directory}: {type(hf).__name__} is not a fast tokenizer; save it once with "
            "transformers so that the directory has tokenizer.json"
        )
    return Tokenizer(backend, bos_token=hf.bos_token, eos_token=hf.eos_token,
                     pad_token=hf.pad_token, eos_ids=_generation_eos(path), hf=hf)  # fmt: skip


def _for_context(spec: str, context: Context) -> str:
    """The tokenizer's definition for texts in `context`."""
    if context == "start" or not any(mark in spec for mark in _BLANKS):
        return spec
    data = json.loads(spec)
    for step in _steps(data.get("pre_tokenizer"), "pretokenizers"):
        scheme = step.get("prepend_scheme")
        if step.get("type") == "Metaspace" and (scheme == "first" or context == "text"):
            step["prepend_scheme"] = "never"
        if step.get("type") == "ByteLevel" and context == "text":
            step["add_prefix_space"] = False
    if context == "text":
        outer = data.get("normalizer")
        if outer and outer.get("type") == "Prepend":
            data["normalizer"] = None
        elif outer and outer.get("type") == "Sequence":
            outer["normalizers"] = [s for s in outer["normalizers"] if s.get("type") != "Prepend"]
    return json.dumps(data)


_BLANKS = ('"prepend_scheme"', '"Prepend"', '"add_prefix_space"')


def _steps(outer: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    return [] if outer is None else [outer, *outer.get(inner, ())]


def _generation_eos(directory: Path) -> tuple[int, ...]:
    file = directory / "generation_config.json"
    if not file.is_file():
        return ()
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as err:
        raise DataError(f"{file}: not a JSON object ({err})") from err
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) for v in values):
        raise DataError(f"{file}: eos_token_id {value!r}; expected an id or a list of ids")
    return tuple(values)


def _fingerprint(backend: tokenizers.Tokenizer, special: frozenset[int]) -> str:
    vocab = sorted((index, text) for text, index in backend.get_vocab(True).items())
    digest = hashlib.sha256()
    for index, text in vocab:
        digest.update(f"{index}\t{text!r}\t{index in special}\n".encode())
    return digest.hexdigest()
