"""Owns which turns of a conversation are trained; knows no row, no template and no token.

What a message says itself (`Message.loss`) goes before the settings.
"""

from __future__ import annotations

import dataclasses

from mindspeed_llm.data.messages import Conversation, Message


def choose_targets(conversation: Conversation, train_on: str, inputs: bool) -> Conversation:
    """The conversation with `train` set on every turn.

    Args:
        conversation: finished turns.
        train_on: answers that are targets unless they say otherwise: "all", "last" or "none".
        inputs: whether user turns are, unless they say otherwise.
    """
    messages = conversation.messages
    if train_on == "all" and not inputs and all(m.loss is None for m in messages):
        return conversation
    answers = [index for index, m in enumerate(messages) if m.role == "assistant"]
    chosen = {"all": answers, "last": answers[-1:], "none": []}[train_on]
    turns = tuple(_marked(m, inputs if m.role == "user" else index in chosen)
                  for index, m in enumerate(messages))  # fmt: skip
    users = any(m.train for m in turns if m.role == "user")
    return dataclasses.replace(conversation, messages=turns, train_inputs=users)


def _marked(message: Message, default: bool) -> Message:
    return dataclasses.replace(message, train=default if message.loss is None else message.loss)
