"""Owns generation: token ids in, token ids out, with keys and values that stay valid between turns
and are shared between conversations.

It knows no text, no template and no terminal. Rank 0 calls the methods; all other ranks of the
model's parallel layout sit in `follow` and do the same steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.memory import KeyValues
from mindspeed_llm.inference.ranks import Ranks
from mindspeed_llm.inference.reply import Reply, Ticket
from mindspeed_llm.inference.sampling import GREEDY, Logprob, Sampling, logprobs_of
from mindspeed_llm.inference.scheduler import Scheduler, Share
from mindspeed_llm.inference.stages import Stages

__all__ = ["Engine", "Reply", "Ticket"]
IGNORE = -100
_SCORED_TOKENS = 2048  # scored together: their logits are all there


class Engine:
    """Generates with one model.

    Args:
        stages: this rank's part of the model.
        ranks: the ranks of the layout.
        stop_ids: ids that end a reply.
        budget: most positions in memory; see `Scheduler`, as rows and chunk.
    """

    def __init__(
        self,
        stages: Stages,
        ranks: Ranks,
        *,
        stop_ids: Sequence[int],
        budget: int | None = None,
        rows: int | None = None,
        chunk: int = 512,
    ) -> None:
        self.stages, self.ranks = stages, ranks
        self.stop_ids = frozenset(stop_ids)
        self.context = stages.context
        self.vocabulary: int = stages.model.vocab_size
        self.scheduler = Scheduler(stages.memory, budget=budget, rows=rows, chunk=chunk)
        self._news: list[dict[str, Any]] = []  # what all ranks have still to be told
        self._tickets: dict[int, Ticket] = {}
        self._number = 0

    def submit(
        self,
        prompt: Sequence[int],
        *,
        sampling: Sampling = GREEDY,
        max_new_tokens: int,
        echo: bool = False,
    ) -> Ticket:
        """Queue a prompt; `advance` makes its reply. Rank 0 only.

        Raises:
            ConfigError: the prompt is empty, or longer than context or memory allow.
        """
        self.check(prompt, max_new_tokens)
        self._number += 1
        ticket = Ticket(self._number, prompt, sampling, max_new_tokens, echo=echo)
        self._tickets[ticket.number] = ticket
        self._news.append({"join": ticket.number, "prompt": ticket.prompt, "echo": echo,
                           "limit": max_new_tokens,
                           "sampling": dataclasses.asdict(sampling)})  # fmt: skip
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The rest of a reply is not wanted; rank 0 only. What was read stays for others."""
        if ticket.number in self._tickets:
            self._news.append({"leave": ticket.number})

    def advance(self) -> list[Ticket]:
        """One step of everything that runs; rank 0 only.

        Returns:
            Those who got an id or came to their end.
        """
        message = {"do": "step", "news": self._news}
        self._news = []
        self.ranks.request(message)
        return self._advance(message["news"])

    @property
    def is_busy(self) -> bool:
        """Whether there is anything for `advance` to do."""
        return bool(self._news or self._tickets)

    def stream(
        self, prompt: Sequence[int], *, sampling: Sampling = GREEDY, max_new_tokens: int
    ) -> tuple[Reply, Iterator[int]]:
        """Start a reply; rank 0 only.

        Returns:
            The reply, filled while the iterator is taken, and the iterator of its ids. Closing the
            iterator early ends the reply on all ranks.

        Raises:
            ConfigError: the prompt is empty, or longer than the context allows.
        """
        ticket = self.submit(prompt, sampling=sampling, max_new_tokens=max_new_tokens)
        return ticket.reply, self._tokens(ticket)

    def generate(
        self, prompt: Sequence[int], *, sampling: Sampling = GREEDY, max_new_tokens: int
    ) -> Reply:
        """A whole reply; see `stream`."""
        reply, tokens = self.stream(prompt, sampling=sampling, max_new_tokens=max_new_tokens)
        for _ in tokens:
            pass
        return reply

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling = GREEDY,
        max_new_tokens: int,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        """Replies to prompts of any lengths; each is the one `generate` gives. Rank 0 only.

        `progress` is called with the number of replies done since the last call; for the rest see
        `batches`.
        """
        found: dict[int, Reply] = {}
        for replies in self.batches(
            prompts, sampling=sampling, max_new_tokens=max_new_tokens, batch_size=batch_size
        ):
            found |= replies
            if progress is not None:
                progress(len(replies))
        return [found[index] for index in range(len(prompts))]

    def batches(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        max_new_tokens: int,
        batch_size: int = 8,
        ends: Callable[[int, int], bool] | None = None,
    ) -> Iterator[dict[int, Reply]]:
        """Replies as they are done: place in `prompts` -> reply. Rank 0 only.

        Args:
            prompts: one list of ids each; the longest come first, so that memory that does not
                suffice shows at once.
            sampling: of all, or one for each prompt; every prompt has its own generator.
            max_new_tokens: per reply.
            batch_size: replies made at the same time; a new one begins when one is done.
            ends: called with a prompt's place and its next id, once for each id in turn; True
                ends that reply ("stop_string"). For those who read the text.

        Raises:
            ConfigError: a prompt is empty, or longer than the context allows; before anything is
                generated.
        """
        for prompt in prompts:
            self.check(prompt, max_new_tokens)
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        assert len(each) == len(prompts)
        return self._batches(prompts, each, max_new_tokens, batch_size, ends)

    def _batches(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        limit: int,
        batch_size: int,
        ends: Callable[[int, int], bool] | None,
    ) -> Iterator[dict[int, Reply]]:
        waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        places: dict[int, int] = {}  # of the tickets that run
        try:
            while waiting or places:
                while waiting and len(places) < batch_size:
                    place = waiting.pop()
                    ticket = self.submit(prompts[place], sampling=sampling[place],
                                         max_new_tokens=limit)  # fmt: skip
                    places[ticket.number] = place
                done = {}
                for ticket in self.advance():
                    place, reply = places[ticket.number], ticket.reply
                    if ends is not None and reply.stop != "stop" and ends(place, reply.ids[-1]):
                        self.cancel(ticket)
                        reply.stop = "stop_string"
                    if reply.stop is not None:
                        done[place] = reply
                        del places[ticket.number]
                if done:
                    yield done
        finally:
            for ticket in list(self._tickets.values()):
                if ticket.number in places:
                    self.cancel(ticket)

    def likelihood(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, int]]:
        """(sum of losses in nats, number of targets) of each row; see `scores`."""
        return [(sum(loss for loss, _ in row), len(row)) for row in self.scores(rows)]

    def scores(
        self,
        rows: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[tuple[float, int]]]:
        """(negative log-likelihood in nats, most probable id) of each row's targets; rank 0 only.

        Rows of similar length go through the model together. `progress` is called with the number
        of rows done since the last call.

        Args:
            rows: ids and labels; a label is -100 or the id at its place. The first id of a row is
                never a target.
        """
        for ids, labels in rows:
            if len(ids) != len(labels) or not ids:
                raise ConfigError(f"{len(ids)} ids with {len(labels)} labels; expected as many")
            if len(ids) > self.context:
                raise ConfigError(
                    f"a conversation has {len(ids)} tokens, more than the context of "
                    f"{self.context}; raise --seq-length if the model allows it, or leave it out"
                )
        found: dict[int, list[tuple[float, int]]] = {}
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
        while order:
            count = max(1, _SCORED_TOKENS // len(rows[order[0]][0]))
            chosen, order = order[:count], order[count:]
            message = {"do": "scores", "rows": [[list(part) for part in rows[i]] for i in chosen]}
            self.ranks.request(message)
            found |= zip(chosen, self._scores(message["rows"]), strict=True)
            if progress is not None:
                progress(len(chosen))
        return [found[index] for index in range(len(rows))]

    def forget(self) -> None:
        """Nothing of earlier prompts is reused by the next one; rank 0 only."""
        self._news.append({"forget": True})

    def close(self) -> None:
        """Let the other ranks leave `follow`; rank 0 only, last."""
        self.ranks.request({"do": "close"})

    def follow(self) -> None:
        """Do what rank 0 asks for until it calls `close`; all other ranks, once."""
        while True:
            request = self.ranks.request()
            if request["do"] == "close":
                return
            if request["do"] == "step":
                self._advance(request["news"])
            elif request["do"] == "scores":
                self._scores(request["rows"])
            else:
                raise AssertionError(f"unknown request {request['do']!r}")

    def check(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Raise ConfigError where a prompt cannot be answered; rank 0 only."""
        assert self.ranks.is_leader, "rank 0 leads, the others follow"
        if max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {max_new_tokens}; expected 1 or more")
        if not prompt:
            raise ConfigError("the prompt is empty; expected at least one token")
        if len(prompt) + max_new_tokens > self.context:
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens and --max-new-tokens is "
                f"{max_new_tokens}: together more than the context of {self.context}; "
                "shorten the prompt, lower --max-new-tokens, or raise --seq-length if the "
                "model allows it"
            )

    def _tokens(self, ticket: Ticket) -> Iterator[int]:
        reply = ticket.reply
        try:
            while reply.stop is None:
                # The last id is handed out with the reply already over, so that whoever does not
                # ask for more than he needs still leaves it finished.
                if ticket in self.advance() and reply.stop != "stop":
                    yield reply.ids[-1]
        finally:
            if reply.stop is None:
                self.cancel(ticket)

    @torch.inference_mode()
    def _advance(self, news: list[dict[str, Any]]) -> list[Ticket]:
        """One step; the same on every rank."""
        for one in news:
            self._learn(one)
        shares = self.scheduler.shares()
        if not shares:
            return []
        parts = [(share.ticket.held, share.ids) for share in shares]
        logits = self.stages.step(parts, [share.wanted for share in shares])
        took = [share.ticket for share in shares if share.wanted and not share.ticket.is_reading]
        asked = [share for share in shares if share.wanted]
        if asked:
            self._tell_prompts(asked, logits)
            lasts = torch.tensor([share.wanted for share in asked]).cumsum(0) - 1
            rows = [int(at) for share, at in zip(asked, lasts, strict=True)
                    if not share.ticket.is_reading]  # fmt: skip
            self._choose(took, None if logits is None else logits[rows])
        for ticket in took:
            if ticket.reply.stop is not None:
                self._end(ticket)
        return took

    def _learn(self, news: dict[str, Any]) -> None:
        if "forget" in news:
            self.scheduler.forget()
        elif "leave" in news:
            ticket = self._tickets.get(news["leave"])
            if ticket is not None:
                self._end(ticket)
        else:
            ticket = self._tickets.get(news["join"])
            if ticket is None:  # a rank that follows
                ticket = Ticket(news["join"], news["prompt"], Sampling(**news["sampling"]),
                                news["limit"], echo=news["echo"])  # fmt: skip
                self._tickets[ticket.number] = ticket
            self.scheduler.join(ticket)

    def _end(self, ticket: Ticket) -> None:
        del self._tickets[ticket.number]
        self.scheduler.leave(ticket)

    def _choose(self, tickets: Sequence[Ticket], logits: torch.Tensor | None) -> None:
        """Next id of each ticket, with its log-probability where it is asked for; chosen where the
        logits, [tickets, vocabulary], are complete, and the same everywhere."""
        tokens = [0] * len(tickets)
        if self.ranks.is_source:
            assert logits is not None
            best = logits.argmax(-1).tolist()
            for at, ticket in enumerate(tickets):
                plain = ticket.sampling.is_greedy and ticket.sampling.repetition_penalty == 1
                tokens[at] = best[at] if plain else int(ticket.sampler(logits[at : at + 1]))
        tokens = self.ranks.share(tokens, src=self.ranks.source) if tickets else []
        asked = [(at, ticket.sampling.logprobs) for at, ticket in enumerate(tickets)
                 if ticket.sampling.logprobs is not None]  # fmt: skip
        told = self._told([(at, tokens[at], count) for at, count in asked], logits)
        of = dict(zip((at for at, _ in asked), told, strict=True))
        for at, ticket in enumerate(tickets):
            ticket.take(tokens[at], of.get(at), self.stop_ids)

    def _tell_prompts(self, shares: Sequence[Share], logits: torch.Tensor | None) -> None:
        """Log-probabilities of the prompt's ids for those who want them."""
        first = 0
        for share in shares:
            ticket, held = share.ticket, share.ticket.held
            if ticket.echo and held is not None and held.length <= len(ticket.prompt):
                start = held.length - len(share.ids)
                after = ticket.prompt[start + 1 : held.length + 1]
                count = ticket.sampling.logprobs or 0
                rows = [(first + at, token, count) for at, token in enumerate(after)]
                ticket.reply.prompt_logprobs += self._told(rows, logits)
            first += share.wanted

    def _told(
        self, rows: Sequence[tuple[int, int, int]], logits: torch.Tensor | None
    ) -> list[Logprob]:
        """What the model itself gives: for each (row of logits, id, number of alternatives)."""
        numbers = [0.0] * sum(1 + 2 * count for _, _, count in rows)
        if not rows:
            return []
        if self.ranks.is_source:
            assert logits is not None
            found = [logprobs_of(logits[row], token, count) for row, token, count in rows]
            numbers = [x for one in found for x in (one.chosen, *sum(one.top, ()))]
        numbers = self.ranks.share(numbers, src=self.ranks.source, dtype=torch.float64)
        told, at = [], 0
        for _, _, count in rows:
            chosen, *rest = numbers[at : at + 1 + 2 * count]
            top = [(int(rest[i]), rest[i + 1]) for i in range(0, len(rest), 2)]
            told.append(Logprob(chosen, top))
            at += 1 + 2 * count
        return told

    def _scores(self, rows: Sequence[Sequence[list[int]]]) -> list[list[tuple[float, int]]]:
        """Rows side by side, each in memory of its own; a long one in pieces."""
        held = [self.stages.memory() for _ in rows]
        found: list[list[tuple[float, int]]] = [[] for _ in rows]
        for start in range(0, max(len(ids) for ids, _ in rows) - 1, _SCORED_TOKENS):
            parts: list[tuple[KeyValues, list[int]]] = []
            wanted: list[int] = []
            of: list[tuple[int, int, int]] = []  # row, row of the logits, target
            for at, (ids, labels) in enumerate(rows):
                own = ids[start : min(start + _SCORED_TOKENS, len(ids) - 1)]
                if not own:
                    continue
                after = enumerate(labels[start + 1 : start + 1 + len(own)])
                targets = [(place, label) for place, label in after if label != IGNORE]
                first = targets[0][0] if targets else len(own)
                of += [(at, sum(wanted) + place - first, label) for place, label in targets]
                parts.append((held[at], own))
                wanted.append(len(own) - first)
            logits = self.stages.step(parts, wanted)
            for (at, _, _), pair in zip(of, self._judged(logits, of), strict=True):
                found[at].append(pair)
        return found

    def _judged(
        self, logits: torch.Tensor | None, of: Sequence[tuple[int, int, int]]
    ) -> list[tuple[float, int]]:
        """(loss, most probable id) for each (_, row of the logits, target), on every rank."""
        losses, best = [0.0] * len(of), [0] * len(of)
        if not of:
            return []
        if self.ranks.is_source:
            assert logits is not None
            places, targets = (torch.tensor([one[i] for one in of]) for i in (1, 2))
            kept = logits[places.to(logits.device)].float()
            wished = targets.to(kept.device)[:, None]
            losses = (-kept.log_softmax(-1).gather(-1, wished)[:, 0].double()).tolist()
            best = kept.argmax(-1).tolist()
        losses = self.ranks.share(losses, src=self.ranks.source, dtype=torch.float64)
        best = self.ranks.share(best, src=self.ranks.source)
        return list(zip(losses, best, strict=True))
