"""Owns turning generated ids into text that can be printed at once; knows neither models nor turns.

Text once handed out is never taken back: an incomplete character waits for its next token. Model
output is not trusted: what would move a terminal's cursor or colours does not pass.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# Embeddings, overrides and isolates reorder what a reader sees on the line.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` without control characters (newline and tab stay) and without bidi controls."""
    return "".join(
        c for c in text if c in "\n\t" or not (unicodedata.category(c) == "Cc" or c in _BIDI)
    )


class TextStream:
    """Decodes ids one by one.

    Args:
        decode: ids -> text, of the tokenizer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Tokenizers write a word's leading space depending on what stands before it, so each step
        # decodes from an earlier token on and hands out the difference.
        self._start = 0
        self._done = 0

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain, possibly empty."""
        self._ids.append(token)
        before, now = self._texts()
        if len(now) <= len(before) or now.endswith(INCOMPLETE):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return printable(now[len(before) :])

    def finish(self) -> str:
        """Text still held back; a character that never became complete is left out."""
        before, now = self._texts()
        self._start = self._done = len(self._ids)
        return printable(now[len(before) :].rstrip(INCOMPLETE))

    def _texts(self) -> tuple[str, str]:
        return (
            self._decode(self._ids[self._start : self._done]),
            self._decode(self._ids[self._start :]),
        )
