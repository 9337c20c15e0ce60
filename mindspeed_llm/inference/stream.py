"""Owns turning generated ids into text that can be printed at once; knows neither models nor turns.

Text once handed out is never taken back: an incomplete character waits for its next token, and what
may become a stop string waits until it has or has not. Model output is not trusted: what would move
a terminal's cursor, write its clipboard or change its colours does not pass.
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
        stops: texts that end the reply; neither they nor what follows is handed out.
        raw: hand out control characters too, for a reader that is no terminal.

    Attributes:
        stopped: whether a stop string was found.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str] = (),
        *,
        raw: bool = False,
    ) -> None:
        assert all(stops), "an empty stop string stands everywhere"
        self._decode, self._stops, self._raw = decode, tuple(stops), raw
        self.stopped = False
        self._ids: list[int] = []
        # Tokenizers write a word's leading space depending on what stands before it, so each step
        # decodes from an earlier token on and hands out the difference.
        self._start = 0
        self._done = 0
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self._length = 0  # of all that was decoded
        self._ends: list[int | None] = []  # length after each id; None within a character

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain, possibly empty."""
        assert not self.stopped, "the reply is over"
        self._ids.append(token)
        before, now = self._texts()
        if now.endswith(INCOMPLETE):
            self._ends.append(None)
            return ""
        fresh = now[len(before) :]
        self._ends.append(self._length + len(fresh))
        if not fresh:
            return ""
        self._start, self._done = self._done, len(self._ids)
        return self._certain(fresh)

    def finish(self) -> str:
        """Text still held back; a character that never became complete is left out."""
        if self.stopped:
            return ""
        before, now = self._texts()
        self._start = self._done = len(self._ids)
        text = self._certain(now[len(before) :].rstrip(INCOMPLETE))
        held, self._held = self._held, ""
        return text + self._shown(held)

    def kept(self) -> int:
        """How many ids lie wholly before the stop string; all of them without one."""
        if not self.stopped:
            return len(self._ids)
        whole = (
            n for n, end in enumerate(self._ends, 1) if end is not None and end <= self._length
        )
        return max(whole, default=0)

    def out(self) -> int:
        """How many ids have their text handed out to its last character."""
        length = self._length - len(self._held)
        for place in range(len(self._ends), 0, -1):
            end = self._ends[place - 1]
            if end is not None and end <= length:
                return place
        return 0

    def _certain(self, fresh: str) -> str:
        """What of the held text and `fresh` can be handed out; the rest is held."""
        self._length += len(fresh)
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._length -= len(text) - min(found)
            self._held = ""
            return self._shown(text[: min(found)])
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return self._shown(text[: len(text) - keep])

    def _shown(self, text: str) -> str:
        return text if self._raw else printable(text)

    def _texts(self) -> tuple[str, str]:
        return (
            self._decode(self._ids[self._start : self._done]),
            self._decode(self._ids[self._start :]),
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, shorter than `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
