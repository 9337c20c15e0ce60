"""Owns what is made of the likelihoods of replies: loss and perplexity by turn, stop accuracy, what
the history is worth. It knows no model: it is given losses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mindspeed_llm.data.messages import Conversation

IGNORE = -100


@dataclasses.dataclass(frozen=True)
class Target:
    """One supervised token: its id, its loss in nats, and the id that was most probable there."""

    id: int
    loss: float
    best: int


@dataclasses.dataclass(frozen=True)
class Scored:
    """The targets of one conversation, a list for each of its replies."""

    replies: tuple[tuple[Target, ...], ...]

    @classmethod
    def of(cls, labels: Sequence[int], scores: Sequence[tuple[float, int]]) -> Scored:
        """From a row's labels and the (loss, most probable id) of its targets, in order.

        Between two replies there always are tokens that are no targets: a user's turn.
        """
        replies: list[list[Target]] = []
        left = iter(scores)
        open_ = False
        for label in labels[1:]:
            if label == IGNORE:
                open_ = False
                continue
            if not open_:
                replies.append([])
                open_ = True
            loss, best = next(left)
            replies[-1].append(Target(label, loss, best))
        return cls(tuple(tuple(reply) for reply in replies))


def summary(scored: Sequence[Scored], stops: Collection[int]) -> dict[str, Any]:
    """All replies together, and those of each turn; JSON-ready.

    Returns:
        `loss` (nats a token), `perplexity`, `tokens`, `replies`; of the tokens that end a reply,
        the share where a stop token is the most probable one (`ends`), and of all others the share
        where it is too (`early`); None where there is no such token. `turns` has the same for the
        first, second, ... replies.
    """
    every = [reply for one in scored for reply in one.replies]
    longest = max((len(one.replies) for one in scored), default=0)
    turns = [
        {"turn": turn + 1}
        | _of([one.replies[turn] for one in scored if len(one.replies) > turn], stops)
        for turn in range(longest)
    ]
    return {"dialogues": len(scored), **_of(every, stops), "turns": turns}


def _of(replies: Sequence[Sequence[Target]], stops: Collection[int]) -> dict[str, Any]:
    targets = [target for reply in replies for target in reply]
    ends = [target.best in stops for target in targets if target.id in stops]
    others = [target.best in stops for target in targets if target.id not in stops]
    loss = math.fsum(target.loss for target in targets) / max(1, len(targets))
    return {
        "loss": loss, "perplexity": perplexity(loss), "tokens": len(targets),
        "replies": len(replies),
        "ends": sum(ends) / len(ends) if ends else None,
        "early": sum(others) / len(others) if others else None,
    }  # fmt: skip


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; infinite where that is more than a float holds."""
    return math.exp(loss) if loss < 700 else math.inf


def only_last(conversation: Conversation) -> Conversation:
    """The conversation with its last reply as the only target."""
    last = len(conversation.messages) - 1
    messages = tuple(
        dataclasses.replace(message, train=at == last)
        for at, message in enumerate(conversation.messages)
    )
    return dataclasses.replace(conversation, messages=messages)


def with_history_of(conversation: Conversation, other: Conversation | None) -> Conversation:
    """The last question and reply, behind all that came before `other`'s last question, or behind
    nothing; the system text stays."""
    before = () if other is None else other.messages[:-2]
    messages = (*before, *conversation.messages[-2:])
    return only_last(dataclasses.replace(conversation, messages=messages))


def gain_of(losses: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, float]:
    """Losses in nats a token of the kinds "true", "shuffled" and "none", from (sum, tokens) of each
    reply, and what the true history gains against the other two; `helped` is the share of replies
    that are likelier after it than after none."""
    mean = {
        name: math.fsum(loss for loss, _ in some) / sum(count for _, count in some)
        for name, some in losses.items()
    }
    pairs = list(zip(losses["true"], losses["none"], strict=True))
    return {
        "dialogues": len(pairs), **mean,
        "gain_over_shuffled": mean["shuffled"] - mean["true"],
        "gain_over_none": mean["none"] - mean["true"],
        "helped": sum(true[0] < none[0] for true, none in pairs) / len(pairs),
    }  # fmt: skip
