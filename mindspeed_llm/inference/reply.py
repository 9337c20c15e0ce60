"""Owns what is asked of an engine and what came of it; knows no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from mindspeed_llm.inference.memory import KeyValues
from mindspeed_llm.inference.sampling import Logprob, Sampler, Sampling

Stop = Literal["stop", "length", "stop_string"]


@dataclasses.dataclass
class Reply:
    """What came of one prompt.

    Attributes:
        ids: generated ids, without the stop id.
        stop: "stop" after a stop id, "length" after the allowed number of tokens, "stop_string"
            where whoever reads the text found one, None while it runs or if nobody took it to
            its end.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them were in the cache already.
        logprobs: one for each id where the sampling asks for them, else empty.
        prompt_logprobs: one for each id of the prompt but the first, where they were asked for.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    ids: list[int] = dataclasses.field(default_factory=list)
    stop: Stop | None = None
    logprobs: list[Logprob] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[Logprob] = dataclasses.field(default_factory=list)


class Ticket:
    """A reply that is being made; the same on every rank.

    Args:
        number: tells it from others.
        prompt: ids.
        sampling: how tokens are drawn.
        limit: most tokens.
        echo: log-probabilities of the prompt's ids too, as many as the sampling says.
    """

    def __init__(
        self, number: int, prompt: Sequence[int], sampling: Sampling, limit: int, *, echo: bool
    ) -> None:
        assert not echo or sampling.logprobs is not None, "how many log-probabilities?"
        self.number, self.prompt, self.limit, self.echo = number, list(prompt), limit, echo
        self.sampling, self.sampler = sampling, Sampler(sampling, 1, [self.prompt])
        self.reply = Reply(prompt_tokens=len(self.prompt))
        self.held: KeyValues | None = None

    @property
    def length(self) -> int:
        """Ids of prompt and reply."""
        return len(self.prompt) + len(self.reply.ids)

    @property
    def is_reading(self) -> bool:
        """Whether a part of the prompt has still to be read."""
        return self.held is None or self.held.length < len(self.prompt)

    def ids(self, first: int, end: int) -> list[int]:
        """Ids of prompt and reply from place `first` up to `end`."""
        size = len(self.prompt)
        if first >= size:
            return self.reply.ids[first - size : end - size]
        return self.prompt[first:end] + self.reply.ids[: max(0, end - size)]

    def take(self, token: int, logprob: Logprob | None, stop_ids: frozenset[int]) -> None:
        """The next id."""
        if token in stop_ids:
            self.reply.stop = "stop"
            return
        self.reply.ids.append(token)
        if logprob is not None:
            self.reply.logprobs.append(logprob)
        if len(self.reply.ids) == self.limit:
            self.reply.stop = "length"
