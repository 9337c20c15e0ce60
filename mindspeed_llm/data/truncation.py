"""Owns shortening a conversation that is too long, by whole turns only.

No header, no end-of-turn token and no part of a turn is ever cut, and the system text stays.
It knows no tokenizer: the length of a conversation is a function it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mindspeed_llm.data.messages import Conversation

POLICIES = ("drop", "oldest-turns", "newest-turns", "error")


def shorten(conversation: Conversation, policy: str, limit: int,
            length: Callable[[Conversation], int]) -> Conversation | None:  # fmt: skip
    """The longest conversation of at most `limit` tokens that `policy` leaves, or None.

    Args:
        conversation: finished turns (user, assistant, user, ...), longer than `limit`.
        policy: "oldest-turns" drops pairs of turns from the beginning, "newest-turns" from the end;
            "drop" and "error" shorten nothing.
        limit: tokens, an exact fit included.
        length: tokens of a conversation.

    Returns:
        None where no pair fits, or none that remains has an answer to train on.
    """
    if policy not in ("oldest-turns", "newest-turns"):
        return None
    messages = conversation.messages
    for dropped in range(2, len(messages), 2):
        kept = messages[dropped:] if policy == "oldest-turns" else messages[:-dropped]
        if kept[0].tool:  # results whose call would be gone
            continue
        if not any(m.train for m in kept if m.role == "assistant"):
            return None
        shorter = dataclasses.replace(conversation, messages=kept)
        if length(shorter) <= limit:
            return shorter
    return None
