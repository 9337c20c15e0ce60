"""Owns rows that are plain texts to go on training with: column, token ids, labels, cutting.

Every token is a target but the first, which nothing precedes. It knows no file format and no turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from mindspeed_llm.data.fields import text
from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.render import IGNORE, Rendered
from mindspeed_llm.data.report import OVER_LENGTH, Made
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.errors import ConfigError

TEMPLATE = "plain-text"  # what manifests call it


@dataclass(frozen=True)
class PlainTextSource:
    """One column with a text a row."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Source.columns`."""
        return (self.column,)

    required = columns

    def unread_hint(self, present: frozenset[str]) -> None:
        """See `Source.unread_hint`."""

    def read(self, row: Mapping[str, Any]) -> str:
        """The row's text; raises RowError where there is none."""
        return text(row.get(self.column), self.column, "text")


class PlainTextRows:
    """Makes rows of texts, as `RowMaker` wants it.

    A text begins with what the tokenizer itself puts before one (often a BOS token). Special-token
    text inside stays text.

    Args:
        source: where the text is.
        tokenizer: with its `hf`.
        append_eod: whether texts end with the eos token; one that already does gets no second.
        seq_length: longest row in tokens.
        split: whether a longer text is cut into rows of `seq_length`; else it is left out.

    Raises:
        ConfigError: `append_eod` and the tokenizer has no eos token.
    """

    template = TEMPLATE

    def __init__(self, source: PlainTextSource, tokenizer: Tokenizer, *, append_eod: bool,
                 seq_length: int | None, split: bool) -> None:  # fmt: skip
        if append_eod and tokenizer.eos_id is None:
            raise ConfigError("--append-eod: this tokenizer has no eos token (eos_token in "
                              "tokenizer_config.json)")  # fmt: skip
        self.source = source
        self.tokenizer = tokenizer
        self._eod = (tokenizer.eos_id,) if append_eod else ()
        self._seq_length, self._split = seq_length, split
        self._encoder = _encoder(tokenizer.hf.backend_tokenizer.to_str())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": self._encoder.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoder = _encoder(state["_encoder"])

    def fingerprint(self) -> str:
        """Hash of what decides which ids a text becomes."""
        return hashlib.sha256(json.dumps([self.template, bool(self._eod)]).encode()).hexdigest()

    def take(self, row: Mapping[str, Any]) -> str:
        """See `RowMaker.take`."""
        return self.source.read(row)

    def make(self, items: Sequence[str]) -> list[Made | RowError]:
        """See `RowMaker.make`."""
        encoded = self._encoder.encode_batch_fast(list(items), add_special_tokens=True)
        return [self._row(encoding.ids) for encoding in encoded]

    def _row(self, ids: list[int]) -> Made | RowError:
        if tuple(ids[-1:]) != self._eod:
            ids = [*ids, *self._eod]
        limit = self._seq_length
        if limit is not None and len(ids) > limit and not self._split:
            return RowError("(row)", f"{len(ids)} tokens, more than --seq-length {limit}",
                            kind=OVER_LENGTH)  # fmt: skip
        rows = cut(ids, len(ids) if limit is None else limit)
        if not rows:
            return RowError(self.source.column, "a single token, so there is nothing to predict",
                            kind="no target")  # fmt: skip
        return Made(rows, tokens=len(ids) - sum(len(row.ids) for row in rows))


def cut(ids: list[int], limit: int) -> list[Rendered]:
    """Rows of at most `limit` tokens of a text."""
    pieces = [ids[at : at + limit] for at in range(0, len(ids), max(1, limit))]
    # A last piece of one token has no target: its only token has nothing before it.
    return [Rendered(p, [IGNORE, *p[1:]]) for p in pieces if len(p) > 1]


def _encoder(spec: str) -> tokenizers.Tokenizer:
    encoder = tokenizers.Tokenizer.from_str(spec)
    encoder.no_padding()
    encoder.no_truncation()
    encoder.encode_special_tokens = True
    return encoder
