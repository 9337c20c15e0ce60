"""Owns what a conversation is and which ones can be trained or answered.

It knows no file format, no template and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["user", "assistant"]


class RowError(Exception):
    """One input row that cannot be used; whoever reads rows counts and reports it.

    Attributes:
        field: column or path inside the row that is wrong, e.g. `histories[2][1]`.
        reason: what was found and what was expected.
        kind: short name of the fault, the same for every row that has it.
    """

    def __init__(self, field: str, reason: str, *, kind: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return _row_error, (self.field, self.reason, self.kind)


def _row_error(field: str, reason: str, kind: str) -> RowError:
    return RowError(field, reason, kind=kind)


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        train: whether it is a target; a user's turn is one only where `Conversation.train_inputs`.
        loss: what the row itself says about that; None: nothing.
        tool: an answer's calls of tools, or a user's turn's results, as texts that the template's
            tool form puts in their places; empty: neither, or written as plain text already.
    """

    role: Role
    content: str
    train: bool = True
    loss: bool | None = None
    tool: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Turns that alternate user, assistant, user, ...; the system text is kept apart.

    `system` None asks for the template's own default, "" for an explicitly empty system text.
    `train_inputs` says whether user turns that have `train` are targets. `tools` is the text of the
    tools that may be called, where the template has a place of its own for it.
    """

    messages: tuple[Message, ...]
    system: str | None = None
    train_inputs: bool = False
    tools: str = ""

    @classmethod
    def of(cls, *texts: str, system: str | None = None) -> Conversation:
        """Conversation of texts that alternate user, assistant, user, ..."""
        roles: Sequence[Role] = ("user", "assistant")
        return cls(tuple(Message(roles[i % 2], t) for i, t in enumerate(texts)), system)

    def is_target(self, message: Message) -> bool:
        """Whether this turn of the conversation, and the token that ends it, is trained."""
        return message.train and (self.train_inputs or message.role == "assistant")

    @property
    def is_open(self) -> bool:
        """Whether the last turn is the user's, so that an answer is due."""
        return bool(self.messages) and self.messages[-1].role == "user"

    def check_turns(self) -> None:
        """Raise RowError unless turns alternate, starting with the user."""
        if not self.messages:
            raise RowError("messages", "no turns", kind="empty conversation")
        for index, message in enumerate(self.messages):
            expected = "assistant" if index % 2 else "user"
            if message.role != expected:
                raise RowError(f"messages[{index}]", f"role {message.role!r} where {expected!r} "
                               "is due", kind="role order")  # fmt: skip

    def check_trainable(self) -> None:
        """Raise RowError unless turns alternate, end with an answer, and one answer is a target."""
        self.check_turns()
        if self.is_open:
            raise RowError(f"messages[{len(self.messages) - 1}]",
                           "the last turn is the user's; an answer is missing",
                           kind="no answer")  # fmt: skip
        if not any(self.is_target(m) for m in self.messages):
            raise RowError("messages", "no turn is a training target", kind="no target")
