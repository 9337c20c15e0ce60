"""Owns mending conversations whose turns do not alternate; knows no row, no file and no template.

Nothing is ever put in: turns are joined or left out, and every repair has a name that is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mindspeed_llm.data.messages import Conversation, Message

JOINED = "neighbouring turns of one role joined"
NO_QUESTION = "leading answer dropped"
NO_ANSWER = "last user turn dropped"


def repair(conversation: Conversation) -> tuple[Conversation, tuple[str, ...]]:
    """The conversation as user, assistant, user, ... assistant, and what was done for that.

    Neighbours of one role are joined by a line end, except calls of tools and their results. Left
    out are what precedes the first question and a user turn behind the last answer. Where nothing
    would be left, it is returned as it is.
    """
    messages = conversation.messages
    if _alternates(messages):
        return conversation, ()
    done: list[str] = []
    turns = _join(messages)
    if len(turns) < len(messages):
        done.append(JOINED)
    if turns and turns[0].role == "assistant":
        asked = (i for i, turn in enumerate(turns) if turn.role == "user" and not turn.tool)
        turns, done = turns[next(asked, len(turns)) :], [*done, NO_QUESTION]
    if turns and turns[-1].role == "user":
        turns, done = turns[:-1], [*done, NO_ANSWER]
    if not turns:
        return conversation, ()
    return dataclasses.replace(conversation, messages=tuple(turns)), tuple(done)


def _alternates(messages: Sequence[Message]) -> bool:
    roles = [message.role for message in messages]
    return set(roles[::2]) == {"user"} and set(roles[1::2]) == {"assistant"} and not len(roles) % 2


def _join(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one turn, which is a target only where each of them is."""
    turns: list[Message] = []
    for message in messages:
        if not turns or turns[-1].role != message.role or turns[-1].tool or message.tool:
            turns.append(message)
            continue
        before = turns[-1]
        marks = {before.loss, message.loss}
        loss = False if False in marks else True if True in marks else None
        turns[-1] = Message(message.role, f"{before.content}\n{message.content}",
                            before.train and message.train, loss)  # fmt: skip
    return turns
