"""Owns looking at a prepared data set: rows cut into what is trained and what is not, and counts
over all of it. Knows neither colours nor models; it reads files and changes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.packing import cu_seqlens, positions
from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.data.writer import index_lengths
from mindspeed_llm.errors import ConfigError, DataError

Kind = Literal["context", "trained", "other", "padding"]
_SCANNED = 1 << 22
_BROKEN = "\ufffd"


@dataclass(frozen=True)
class RowView:
    """One row; all arrays are int [length], labels are unshifted.

    `segments` are 1 .. k and 0 on padding, `positions` what the model is told; `tokens` are
    readable, printable texts, or None without a tokenizer; `trained_as` has those of labels that
    are another token than the one they stand at.
    """

    number: int
    ids: np.ndarray
    labels: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    tokens: list[str] | None
    trained_as: dict[int, str]

    def runs(self) -> Iterator[tuple[Kind, int, int]]:
        """(kind, start, stop) of stretches that lie in one segment and are treated alike.

        "trained": the label is the token itself. "other": it is another token (as MindSpeed-LLM
        writes the end of some turns); each stands alone.
        """
        kinds = np.full(len(self.ids), 0)
        kinds[self.labels != IGNORE] = 1
        kinds[(self.labels != IGNORE) & (self.labels != self.ids)] = 2
        kinds[self.segments == 0] = 3
        change = (np.diff(kinds) != 0) | (np.diff(self.segments) != 0) | (kinds[1:] == 2)
        edges = [0, *(np.flatnonzero(change) + 1).tolist(), len(self.ids)]
        names: tuple[Kind, ...] = ("context", "trained", "other", "padding")
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            yield names[kinds[start]], start, stop

    @property
    def supervised(self) -> int:
        """Labels that are not -100."""
        return int((self.labels != IGNORE).sum())

    def as_json(self) -> dict[str, Any]:
        """The row for machines."""
        return {"row": self.number, "input_ids": self.ids.tolist(), "labels": self.labels.tolist(),
                "segments": self.segments.tolist(), "positions": self.positions.tolist(),
                "tokens": self.tokens}  # fmt: skip


def view_row(number: int, ids: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray,
             tokenizer: Tokenizer | None, segments: np.ndarray | None = None,
             multiple: int = 1) -> RowView:  # fmt: skip
    """A row from its ids and labels; without segment ids it is one conversation."""
    ids, labels = np.asarray(ids), np.asarray(labels)
    if segments is None:
        segments, at = np.ones(len(ids), dtype=np.int32), np.arange(len(ids))
    else:
        at = positions(cu_seqlens(segments, multiple))
    others = np.flatnonzero((labels != IGNORE) & (labels != ids)).tolist()
    if tokenizer is None:
        trained_as = {index: str(labels[index]) for index in others}
        return RowView(number, ids, labels, segments, at, None, trained_as)
    tokens = [readable(tokenizer, int(token)) for token in ids]
    trained_as = {index: readable(tokenizer, int(labels[index])) for index in others}
    return RowView(number, ids, labels, segments, at, tokens, trained_as)


def readable(tokenizer: Tokenizer, index: int) -> str:
    """What one token stands for, printable; the vocabulary's spelling for parts of characters."""
    spelled = tokenizer.token(index)
    text = spelled if index in tokenizer.special_ids else tokenizer.decode([index])
    if _BROKEN in text or not text:
        text = spelled or f"<id {index}>"
    elif spelled.startswith("\u2581") and not text.startswith(" "):
        text = " " + text  # some decoders drop the blank before the first word
    return printable(text)


def printable(text: str) -> str:
    """`text` with everything that a terminal could obey, or not show, written as an escape."""
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
    return "".join(named.get(c) or (c if c.isprintable() else _escape(ord(c))) for c in text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@dataclass(frozen=True)
class Counts:
    """Per conversation, over a whole data set: int [conversations].

    `answers` are the stretches of supervised tokens: with the default labels the answers that are
    trained; what is not trained cannot be told from the files.
    """

    lengths: np.ndarray
    answers: np.ndarray


class PreparedRows:
    """The rows of a prepared data set, read without megatron.core.

    Args:
        prefix: `--output-prefix` of preprocess_data.py.

    Raises:
        DataError: missing, unfinished or damaged files.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.files = DatasetFiles(Path(prefix))
        self.manifest = Manifest.read(self.files)
        self._lengths = index_lengths(self.files.index("input_ids")).astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        keys = ("input_ids", "labels", "attention_mask")
        self._data = {key: np.memmap(self.files.data(key), dtype="<i4", mode="r") for key in keys}
        if any(len(data) != self._starts[-1] for data in self._data.values()):
            raise DataError(f"data set {prefix}: its files differ in length; prepare it again")

    def __len__(self) -> int:
        return len(self._lengths)

    def check_tokenizer(self, tokenizer: Tokenizer, flag: str) -> None:
        """Raise DataError unless the data set was prepared with `tokenizer`."""
        if tokenizer.sha256 != self.manifest.tokenizer_sha256:
            raise DataError(
                f"{flag} has the vocabulary hash {tokenizer.sha256[:12]}, the data set "
                f"{self.files.prefix} was prepared with {self.manifest.tokenizer_sha256[:12]}: "
                "its ids mean other words. Give that tokenizer, or leave the flag out to see ids"
            )

    def row(self, number: int, tokenizer: Tokenizer | None) -> RowView:
        """Row `number`, from 0.

        Raises:
            ConfigError: there are not so many.
        """
        if not 0 <= number < len(self):
            raise ConfigError(f"--rows {number}: the data set has rows 0 to {len(self) - 1}")
        at = slice(int(self._starts[number]), int(self._starts[number + 1]))
        ids, labels, mask = (np.asarray(data[at]) for data in self._data.values())
        packing = self.manifest.packing
        if packing is None:
            return view_row(number, ids, labels, tokenizer)
        return view_row(number, ids, labels, tokenizer, mask, packing.multiple)

    def counts(self) -> Counts:
        """Lengths and trained answers of every conversation; reads the files once, in pieces."""
        lengths, answers = [], []
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self._starts, self._starts[first] + _SCANNED, "right")) - 1
            last = min(max(last, first + 1), len(self))
            at = slice(int(self._starts[first]), int(self._starts[last]))
            begins = np.zeros(at.stop - at.start, dtype=bool)
            begins[self._starts[first:last] - at.start] = True
            found = _count(np.asarray(self._data["labels"][at]) != IGNORE,
                           np.asarray(self._data["attention_mask"][at]), begins)  # fmt: skip
            lengths.append(found.lengths)
            answers.append(found.answers)
            first = last
        return Counts(np.concatenate(lengths), np.concatenate(answers))

    def summary(self) -> dict[str, Any]:
        """What the manifest says, as words and numbers in the order in which one reads them."""
        manifest, packing = self.manifest, self.manifest.packing
        facts: dict[str, Any] = {
            "data set": str(self.files.prefix),
            "template": f"{manifest.template} ({manifest.template_sha256[:12]})",
            "tokenizer": f"{manifest.vocab_size} tokens ({manifest.tokenizer_sha256[:12]})",
            "rows": manifest.rows,
            "tokens": manifest.tokens,
            "supervised tokens": manifest.supervised_tokens,
            "supervised share": manifest.supervised_tokens / max(1, manifest.tokens),
            "longest conversation": manifest.longest,
        }
        if manifest.seq_length is not None:
            facts["seq-length"] = manifest.seq_length
        if packing is not None:
            facts |= {
                "conversations": packing.segments,
                "conversations a row": packing.segments / packing.rows,
                "packing efficiency": packing.efficiency,
            }
        return facts


def _count(supervised: np.ndarray, segments: np.ndarray, row_begins: np.ndarray) -> Counts:
    """Counts over whole rows that lie one behind the other."""
    before = np.concatenate([[0], segments[:-1]])
    begins = (segments != 0) & (row_begins | (segments != before))
    starts = np.flatnonzero(begins)
    # Padding belongs to the conversation before it here; it is neither counted nor supervised.
    opens = supervised & (begins | ~np.concatenate([[False], supervised[:-1]]))
    lengths = np.add.reduceat((segments != 0).astype(np.int64), starts)
    return Counts(lengths, np.add.reduceat(opens.astype(np.int64), starts))
