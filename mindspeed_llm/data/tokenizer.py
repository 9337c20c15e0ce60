"""Owns loading a Hugging Face tokenizer and turning plain text and markers into ids.

Text is encoded with special tokens off: what a user types never becomes a marker.
It knows no template and no conversation.
"""

from __future__ import annotations

import copy
import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers

from mindspeed_llm.data.tokenizer_files import read_files
from mindspeed_llm.errors import DataError, TemplateError

# What a text follows. Many SentencePiece tokenizers put a blank before a text, some before the
# first of a row only, others also behind a special token, and none inside a running text.
Context = Literal["start", "marker", "text"]
CONTEXTS: tuple[Context, ...] = ("start", "marker", "text")


class Tokenizer:
    """A tokenizer for contents (`encode_text`) and markers (`token_id`).

    The backend becomes this object's own and is changed; give it a copy of one that others use.

    Attributes:
        bos_token, eos_token: their texts, or None.
        bos_id, eos_id: ids, or None where the tokenizer has none.
        pad_id: padding id; eos, then 0, where the tokenizer has none (padding is told from text by
            lengths, never by this id).
        eos_ids: eos and every `eos_token_id` of generation_config.json.
        chat_template: the tokenizer's own, in jinja, or None; `named` are the special tokens that
            it knows by name.
        special_ids: ids that text never becomes.
        strips: added token -> whether it swallows the white space on its left, on its right; only
            those that do either.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, bos_token: str | None = None,
                 eos_token: str | None = None, pad_token: str | None = None,
                 eos_ids: Sequence[int] = (), chat_template: str | None = None,
                 named: Mapping[str, str] | None = None,
                 directory: Path | None = None) -> None:  # fmt: skip
        self._set(backend)
        self._directory = directory
        self._hf: Any = None
        self.chat_template, self.named = chat_template, dict(named or {})
        self.bos_token, self.eos_token = bos_token, eos_token
        self.bos_id = None if bos_token is None else backend.token_to_id(bos_token)
        self.eos_id = None if eos_token is None else backend.token_to_id(eos_token)
        pad = None if pad_token is None else backend.token_to_id(pad_token)
        self.pad_id: int = next(i for i in (pad, self.eos_id, 0) if i is not None)
        own = () if self.eos_id is None else (self.eos_id,)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((*own, *eos_ids)))
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.strips = {t.content: (t.lstrip, t.rstrip) for t in added.values()
                       if t.lstrip or t.rstrip}  # fmt: skip

    def _set(self, backend: tokenizers.Tokenizer) -> None:
        """Take a tokenizer as one's own, and make those for other contexts of it."""
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        steps = _Steps(backend)
        made = {steps.of("start"): backend}
        for context in CONTEXTS:
            wanted = steps.of(context)
            if wanted not in made:
                made[wanted] = copy_tokenizer(backend, wanted)
        self._texts: dict[Context, tokenizers.Tokenizer] = {c: made[steps.of(c)] for c in CONTEXTS}
        self._text = self._texts["marker"]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_hf"] = state["_text"] = None
        state["_texts"] = self._texts["start"].to_str()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set(tokenizers.Tokenizer.from_str(state["_texts"]))

    @property
    def hf(self) -> Any:
        """The transformers tokenizer; reading it takes seconds, and most work does without it."""
        if self._hf is None:
            assert self._directory is not None, "made without a directory"
            self._hf = _from_transformers(self._directory, str(self._directory))
        return self._hf

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id."""
        return self._vocabulary[0]

    @property
    def sha256(self) -> str:
        """Hash of the vocabulary: ids, tokens, which are special."""
        return self._vocabulary[1]

    @cached_property
    def _vocabulary(self) -> tuple[int, str]:
        # Both need every token, which takes a second of the largest vocabularies.
        rows = sorted(self._text.get_vocab(True).items(), key=operator.itemgetter(1))
        special = self.special_ids
        lines = "".join([f"{index}\t{text!r}\t{index in special}\n" for text, index in rows])
        return rows[-1][1] + 1, hashlib.sha256(lines.encode()).hexdigest()

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *,
                    add_generation_prompt: bool = False,
                    tools: Sequence[Any] | None = None) -> str:  # fmt: skip
        """Text of a conversation in the tokenizer's own chat template, which must be there.

        Raises:
            jinja2.TemplateError: the template is none, or refuses the conversation.
        """
        # Late: most texts are made without it.
        from mindspeed_llm.data.jinja_chat import render_chat

        assert self.chat_template is not None
        return render_chat(self.chat_template, messages, named=self.named, tools=tools,
                           add_generation_prompt=add_generation_prompt)  # fmt: skip

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text whose special tokens are meant as such, as transformers encodes it."""
        backend = self._texts["start"]
        backend.encode_special_tokens = False
        try:
            return list(backend.encode(text, add_special_tokens=False).ids)
        finally:
            backend.encode_special_tokens = True

    def encode_text(self, text: str, context: Context = "marker") -> list[int]:
        """Ids of plain text; special-token text in it is split into ordinary tokens.

        `context` is what precedes it: nothing ("start"), a special token, or more text.

        Raises:
            DataError: half of a surrogate pair is in it, so that it is no text.
        """
        (ids,) = self.encode_texts([text], context)
        return ids

    def encode_texts(self, texts: Sequence[str], context: Context = "marker") -> list[list[int]]:
        """`encode_text` of many texts in one call."""
        try:
            batch = self._texts[context].encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as err:
            raise DataError("a text has half of a surrogate pair in it, which is no character (in "
                            "JSON: \\ud800 to \\udfff; typed: a byte that is not UTF-8); take it "
                            "out") from err  # fmt: skip
        return [encoding.ids for encoding in batch]

    def spots(self, text: str, context: Context = "marker") -> list[tuple[int, int]]:
        """(start, end) in characters of each of `encode_text`'s tokens."""
        return self._texts[context].encode(text, add_special_tokens=False).offsets

    def guarding(self, markers: Sequence[str]) -> Tokenizer:
        """This tokenizer, or a copy in which `markers` are special too and so never come from text.

        Some tokenizers list their turn markers as ordinary added tokens, which plain text matches.
        """
        added = self._text.get_added_tokens_decoder()
        loose = {i: t for i, t in added.items() if t.content in markers and not t.special}
        if not loose:
            return self
        backend = copy_tokenizer(self._texts["start"])
        for token in loose.values():
            token.special = True
        backend.add_special_tokens(list(loose.values()))
        guarded = object.__new__(Tokenizer)
        guarded.__dict__.update(self.__dict__)
        # The vocabulary's hash is of the directory: what a template guards is not part of it.
        guarded.__dict__.update(_vocabulary=self._vocabulary,
                                special_ids=self.special_ids | set(loose))  # fmt: skip
        guarded._set(backend)
        return guarded

    def has_token(self, marker: str) -> bool:
        """Whether a marker is one token."""
        return self._text.token_to_id(marker) is not None

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
    eos_ids = _generation_eos(path)
    files = read_files(path)
    if files is not None:
        return Tokenizer(files.backend, bos_token=files.named.get("bos_token"),
                         eos_token=files.named.get("eos_token"),
                         pad_token=files.named.get("pad_token"), eos_ids=eos_ids,
                         chat_template=files.chat_template, named=files.named,
                         directory=path)  # fmt: skip
    hf = _from_transformers(path, f"{flag} {directory}")
    template = hf.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    made = Tokenizer(copy_tokenizer(hf.backend_tokenizer), bos_token=hf.bos_token,
                     eos_token=hf.eos_token, pad_token=hf.pad_token, eos_ids=eos_ids,
                     chat_template=template, named=dict(hf.special_tokens_map),
                     directory=path)  # fmt: skip
    made._hf = hf
    return made


def _from_transformers(path: Path, where: str) -> Any:
    # Late: transformers takes seconds to import.
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as err:
        first = str(err).strip().splitlines()
        raise DataError(f"{where}: transformers cannot read a tokenizer there: "
                        f"{first[0] if first else type(err).__name__}") from err  # fmt: skip
    backend = getattr(hf, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise DataError(
            f"{where}: {type(hf).__name__} is not a fast tokenizer; save it once with "
            "transformers so that the directory has tokenizer.json"
        )
    return hf


def copy_tokenizer(backend: tokenizers.Tokenizer, steps: str | None = None) -> tokenizers.Tokenizer:
    """A tokenizer of its own like `backend`; `steps` is a JSON text of parts to put in place."""
    spec = backend.to_str()
    if steps is not None:
        spec = json.dumps({**json.loads(spec), **json.loads(steps)})
    made = tokenizers.Tokenizer.from_str(spec)
    made.no_padding()
    made.no_truncation()
    made.encode_special_tokens = backend.encode_special_tokens
    return made


class _Steps:
    """What a tokenizer does to a text before it looks for tokens, by context."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        parts = {"normalizer": backend.normalizer, "pre_tokenizer": backend.pre_tokenizer}
        self._own = {name: None if part is None else json.loads(part.__getstate__())
                     for name, part in parts.items()}  # fmt: skip

    def of(self, context: Context) -> str:
        """JSON text of the normalizer and the pre-tokenizer for texts in `context`."""
        data = copy.deepcopy(self._own)
        if context == "start":
            return json.dumps(data)
        for step in _inside(data["pre_tokenizer"], "pretokenizers"):
            scheme = step.get("prepend_scheme")
            if step.get("type") == "Metaspace" and (scheme == "first" or context == "text"):
                step["prepend_scheme"] = "never"
            if step.get("type") == "ByteLevel" and context == "text":
                step["add_prefix_space"] = False
        outer = data["normalizer"]
        if context == "text" and outer:
            if outer.get("type") == "Prepend":
                data["normalizer"] = None
            elif outer.get("type") == "Sequence":
                outer["normalizers"] = [s for s in outer["normalizers"]
                                        if s.get("type") != "Prepend"]  # fmt: skip
        return json.dumps(data)


def _inside(outer: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
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
