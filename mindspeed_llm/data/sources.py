"""Owns how a row of an input file becomes a conversation, by handler and `--map-keys`.

It knows no file format and no template. An unusable row raises RowError; none is invented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mindspeed_llm.config.data import PLAIN_TEXT
from mindspeed_llm.data.fields import is_text, json_list, kind_of, text, text_or_empty
from mindspeed_llm.data.message_lists import MessageListSource
from mindspeed_llm.data.messages import Conversation, Message, RowError
from mindspeed_llm.data.plain_text import PlainTextSource
from mindspeed_llm.errors import ConfigError

Row = Mapping[str, Any]
_ALPACA_DEFAULTS: dict[str, str | None] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": None,
    "system": None,
}
_HISTORY_NAMES = ("history", "histories")


class Source(Protocol):
    """What the pipeline needs of a handler."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that must occur somewhere in each file."""

    def read(self, row: Row) -> Any:
        """The row's conversation, or plain text; raises RowError where there is none."""

    def unread_hint(self, present: frozenset[str]) -> str | None:
        """Advice where `present` holds columns with turns that are not read."""


@dataclass(frozen=True)
class AlpacaSource:
    """instruction, input, output, and turns before them in a history column.

    Args:
        prompt, query: columns of the last user turn, joined by a line end; None: not read.
        response: column of the last answer.
        history: column with earlier [user, assistant] pairs: a list, a JSON text of one, or null.
        system: column with the system text; empty or null: the template's default.
        mapped: columns that the user named himself, which must therefore exist.
    """

    prompt: str | None
    query: str | None
    response: str
    history: str | None
    system: str | None
    mapped: frozenset[str]

    @classmethod
    def from_map_keys(cls, map_keys: Mapping[str, Any] | None) -> AlpacaSource:
        """Defaults overridden by `map_keys` (attribute -> column; "" or null: not read)."""
        chosen = dict(_ALPACA_DEFAULTS)
        for name, column in (map_keys or {}).items():
            if name not in chosen:
                raise ConfigError(
                    f"--map-keys: no attribute {name!r}; AlpacaStyleInstructionHandler has "
                    f"{', '.join(chosen)}, e.g. " + '\'{"history": "histories"}\''
                )
            if column is not None and not isinstance(column, str):
                raise ConfigError(f"--map-keys: {name!r}: {column!r}; expected a column's name, or "
                                  "null to not read it")  # fmt: skip
            chosen[name] = column or None
        if chosen["response"] is None or not (chosen["prompt"] or chosen["query"]):
            raise ConfigError("--map-keys: a conversation needs 'response' and at least one of "
                              "'prompt' and 'query'")  # fmt: skip
        mapped = frozenset(c for c in (map_keys or {}).values() if c)
        return cls(chosen["prompt"], chosen["query"], chosen["response"], chosen["history"],
                   chosen["system"], mapped)  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Source.columns`."""
        named = (self.prompt, self.query, self.response, self.history, self.system)
        return tuple(dict.fromkeys(c for c in named if c is not None))

    @property
    def required(self) -> tuple[str, ...]:
        """See `Source.required`; the default query column may be absent."""
        return tuple(c for c in self.columns if c != self.query or c in self.mapped
                     or self.prompt is None)  # fmt: skip

    def unread_hint(self, present: frozenset[str]) -> str | None:
        """See `Source.unread_hint`."""
        unread = [c for c in _HISTORY_NAMES if c in present and c not in self.columns]
        if not unread or self.history is not None:
            return None
        return (f"column {unread[0]!r} is not read, so earlier turns are lost; to train on them: "
                f'--map-keys \'{{"history": "{unread[0]}"}}\'')  # fmt: skip

    def read(self, row: Row) -> Conversation:
        """See `Source.read`."""
        messages: list[Message] = []
        for index, (user, answer) in enumerate(self._pairs(row)):
            if not (is_text(user) and is_text(answer)):  # names are made only where needed
                where = f"{self.history}[{index}]"
                user = text(user, f"{where}[0]", "user turn")
                answer = text(answer, f"{where}[1]", "answer")
            messages += (Message("user", user), Message("assistant", answer))
        fields = [c for c in (self.prompt, self.query) if c is not None]
        texts = [t for c in fields if (t := text_or_empty(row.get(c), c))]
        user = "\n".join(texts)
        if not user.strip():
            raise RowError(" + ".join(fields), "no text", kind="empty user turn")
        messages.append(Message("user", user))
        answer = text(row.get(self.response), self.response, "answer")
        messages.append(Message("assistant", answer))
        system = text_or_empty(row.get(self.system), self.system) if self.system else ""
        return Conversation(tuple(messages), system or None)

    def _pairs(self, row: Row) -> list[Any]:
        if self.history is None:
            return []
        expected = "a list of [user, assistant] pairs"
        history = json_list(row.get(self.history), self.history, expected, kind="malformed history")
        for index, pair in enumerate(history):
            if not isinstance(pair, list) or len(pair) != 2:
                found = f"a list of {len(pair)}" if isinstance(pair, list) else kind_of(pair)
                raise RowError(f"{self.history}[{index}]", f"{found}, expected a [user, assistant] "
                               "pair", kind="malformed history")  # fmt: skip
        return history


HANDLERS: dict[str, Callable[[Mapping[str, Any] | None], Source]] = {
    "AlpacaStyleInstructionHandler": AlpacaSource.from_map_keys,
    "SharegptStyleInstructionHandler": MessageListSource.sharegpt,
    "OpenAIInstructionHandler": MessageListSource.openai,
}


def make_source(handler: str, map_keys: Mapping[str, Any] | None,
                json_keys: Sequence[str] = ("text",)) -> Source:  # fmt: skip
    """The source of `--handler-name` and `--map-keys`, or of plain texts and `--json-keys`.

    Raises:
        ConfigError: no such handler, or a map that does not fit it.
    """
    if handler == PLAIN_TEXT:
        return PlainTextSource(json_keys[0])
    if handler not in HANDLERS:
        known = ", ".join((*HANDLERS, PLAIN_TEXT))
        raise ConfigError(f"--handler-name {handler}: not known; expected {known}")
    return HANDLERS[handler](map_keys)
