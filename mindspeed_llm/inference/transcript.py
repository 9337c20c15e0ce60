"""Owns how a conversation is written out: for a reader at a terminal, or as JSON for machines.

It knows neither models nor commands. What a model said reaches a terminal only through
`stream.printable`; JSON lines hold it whole, with everything beyond ASCII escaped.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, Protocol, TextIO

from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.stream import printable

SPEAKER = "MindSpeed-LLM:"
Ending = Literal["stop", "length", "stop_string", "interrupted"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished reply.

    Attributes:
        number: of the turn, from 1.
        reply: ids and counts.
        text: what was said, with control characters.
        ending: why it ended.
        limit: longest reply allowed, in tokens.
        first: seconds until the first token came.
        seconds: seconds until the last one came.
        context: longest sequence of the model, in tokens.
    """

    number: int
    reply: Reply
    text: str
    ending: Ending
    limit: int
    first: float
    seconds: float
    context: int

    @property
    def rate(self) -> float:
        """Tokens a second after the first; 0 where only one came."""
        later = len(self.reply.ids) - 1
        return later / max(self.seconds - self.first, 1e-9) if later > 0 else 0.0

    def stats(self) -> str:
        """Counts and speed in one line."""
        reply = self.reply
        used = reply.prompt_tokens + len(reply.ids)
        rate = f"{self.rate:.1f} tokens/s" if self.rate else "no rate"
        return (
            f"prompt {reply.prompt_tokens} tokens ({reply.cached_tokens} cached), new "
            f"{len(reply.ids)}, first after {self.first:.2f} s, {rate}, context {used} of "
            f"{self.context}, ended by {self.ending}"
        )


class Transcript(Protocol):
    """What a chat says."""

    is_raw: bool
    """Whether pieces keep control characters."""

    def notice(self, text: str, *, last: bool = False) -> None:
        """Something about the conversation; `last`: nothing follows it before the next line."""

    def refuse(self, text: str) -> None:
        """A line that was not sent, and why."""

    def begin(self) -> None:
        """A reply begins."""

    def piece(self, text: str) -> None:
        """A part of the reply."""

    def end(self, outcome: Outcome, *, stats: bool) -> None:
        """The reply is over."""

    def leave(self) -> None:
        """The input has ended in the middle of a line."""


class Plain:
    """For a person: the reply as it comes, notices in brackets."""

    is_raw = False

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def notice(self, text: str, *, last: bool = False) -> None:
        self._say(f"[{printable(text)}]\n" + ("\n" if last else ""))

    def refuse(self, text: str) -> None:
        self._say(f"[not sent: {printable(text)}]\n\n")

    def begin(self) -> None:
        self._say(f"{SPEAKER}\n")

    def piece(self, text: str) -> None:
        self._say(text)

    def end(self, outcome: Outcome, *, stats: bool) -> None:
        marks = {
            "interrupted": " [stopped]",
            "length": f" [cut after --max-new-tokens {outcome.limit}]",
        }
        line = f"\n[{outcome.stats()}]" if stats else ""
        self._say(marks.get(outcome.ending, "") + line + "\n\n")

    def leave(self) -> None:
        self._say("\n")

    def _say(self, text: str) -> None:
        if text:
            self.out.write(text)
            self.out.flush()


class JsonLines:
    """For machines: one object for each reply, notice or refusal."""

    is_raw = True

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def notice(self, text: str, *, last: bool = False) -> None:
        self._write({"notice": text})

    def refuse(self, text: str) -> None:
        self._write({"error": text})

    def begin(self) -> None:
        return None

    def piece(self, text: str) -> None:
        return None

    def end(self, outcome: Outcome, *, stats: bool) -> None:
        reply = outcome.reply
        row: dict[str, Any] = {
            "turn": outcome.number,
            "text": outcome.text,
            "ids": reply.ids,
            "usage": {
                "prompt_tokens": reply.prompt_tokens,
                "cached_tokens": reply.cached_tokens,
                "completion_tokens": len(reply.ids),
            },
            "stop": outcome.ending,
        }
        if reply.logprobs:
            row["logprobs"] = [one._asdict() for one in reply.logprobs]
        if stats:
            row["time"] = {"first": outcome.first, "tokens_per_second": outcome.rate}
        self._write(row)

    def leave(self) -> None:
        return None

    def _write(self, row: dict[str, Any]) -> None:
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()
