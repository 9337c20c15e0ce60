"""Owns generation: token ids in, token ids out, with a KV cache that stays valid between turns.

It knows no text, no template and no terminal. Rank 0 calls the methods; all other ranks of the
model's parallel layout sit in `follow` and do the same steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.ranks import Ranks
from mindspeed_llm.inference.sampling import GREEDY, Logprob, Sampler, Sampling, logprobs_of
from mindspeed_llm.inference.stages import Stages

IGNORE = -100
_PREFILL_CHUNK = 512  # bounds the attention scores of a long prompt
_SCORED_TOKENS = 2048  # scored together, unless one row is longer: their logits are all there

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
    """

    prompt_tokens: int
    cached_tokens: int = 0
    ids: list[int] = dataclasses.field(default_factory=list)
    stop: Stop | None = None
    logprobs: list[Logprob] = dataclasses.field(default_factory=list)


class Engine:
    """Generates with one model.

    Args:
        stages: this rank's part of the model.
        ranks: the ranks of the layout.
        stop_ids: ids that end a reply.
        context: longest sequence, prompt and reply together, in tokens.
    """

    def __init__(
        self, stages: Stages, ranks: Ranks, *, stop_ids: Sequence[int], context: int
    ) -> None:
        self.stages, self.ranks = stages, ranks
        self.stop_ids = frozenset(stop_ids)
        self.context = context
        self.vocabulary: int = stages.model.vocab_size
        self._cache = stages.cache(1, context)
        self._held: list[int] = []  # ids whose keys and values the cache holds

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
        self._check([prompt], max_new_tokens)
        reply = Reply(prompt_tokens=len(prompt))
        return reply, self._lead(reply, list(prompt), sampling, max_new_tokens)

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
        sampling: Sampling = GREEDY,
        max_new_tokens: int,
        batch_size: int = 8,
        ends: Callable[[int, int], bool] | None = None,
    ) -> Iterator[dict[int, Reply]]:
        """Replies as they are done: place in `prompts` -> reply, a batch at a time. Rank 0 only.

        Args:
            prompts: one list of ids each; those of similar length are decoded together, the
                longest first, so that memory that does not suffice shows at once.
            sampling: every prompt is drawn with its own generator of the same seed.
            max_new_tokens: per reply.
            batch_size: prompts decoded together.
            ends: called with a prompt's place and its next id, once for each id in turn; True
                ends that reply ("stop_string"). For those who read the text.

        Raises:
            ConfigError: a prompt is empty, or longer than the context allows; before anything is
                generated.
        """
        self._check(prompts, max_new_tokens)
        return self._batches(prompts, sampling, max_new_tokens, batch_size, ends)

    def _batches(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        limit: int,
        batch_size: int,
        ends: Callable[[int, int], bool] | None,
    ) -> Iterator[dict[int, Reply]]:
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            rows = [list(prompts[index]) for index in chosen]
            own = None if ends is None else (lambda row, token, at=chosen: ends(at[row], token))
            self.ranks.request({"do": "batch", "prompts": rows, "limit": limit,
                                "sampling": dataclasses.asdict(sampling),
                                "watched": ends is not None})  # fmt: skip
            replies = self._batch(rows, sampling, limit, ends is not None, own)
            yield dict(zip(chosen, replies, strict=True))

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
        self.ranks.request({"do": "forget"})
        self._held.clear()

    def close(self) -> None:
        """Let the other ranks leave `follow`; rank 0 only, last."""
        self.ranks.request({"do": "close"})

    def follow(self) -> None:
        """Do what rank 0 asks for until it calls `close`; all other ranks, once."""
        while True:
            request = self.ranks.request()
            if request["do"] == "close":
                return
            self._obey(request)

    def _obey(self, request: dict[str, Any]) -> None:
        if request["do"] == "forget":
            self._held.clear()
        elif request["do"] == "scores":
            self._scores(request["rows"])
        elif request["do"] == "batch":
            self._batch(
                request["prompts"],
                Sampling(**request["sampling"]),
                request["limit"],
                request["watched"],
                None,
            )
        elif request["do"] == "reply":
            steps = self._steps(request["prompt"], Sampling(**request["sampling"]))
            while self.ranks.go_on():
                next(steps)
        else:
            raise AssertionError(f"unknown request {request['do']!r}")

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        assert self.ranks.is_leader, "rank 0 leads, the others follow"
        if max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {max_new_tokens}; expected 1 or more")
        for prompt in prompts:
            if not prompt:
                raise ConfigError("the prompt is empty; expected at least one token")
            if len(prompt) + max_new_tokens > self.context:
                raise ConfigError(
                    f"the prompt has {len(prompt)} tokens and --max-new-tokens is "
                    f"{max_new_tokens}: together more than the context of {self.context}; "
                    "shorten the prompt, lower --max-new-tokens, or raise --seq-length if the "
                    "model allows it"
                )

    def _lead(
        self, reply: Reply, prompt: list[int], sampling: Sampling, limit: int
    ) -> Iterator[int]:
        self.ranks.request(
            {"do": "reply", "prompt": prompt, "sampling": dataclasses.asdict(sampling)}
        )
        # However this generator ends, the others are told: they wait for a yes before each step.
        is_open = True
        try:
            reply.cached_tokens = self._reusable(prompt)
            steps = self._steps(prompt, sampling)
            while reply.stop is None:
                self.ranks.go_on(True)
                token, logprob = next(steps)
                self._take(reply, token, logprob, limit)
                if reply.stop == "stop":
                    return
                if reply.stop is not None:
                    # The last id is handed out with the reply already over, so that whoever
                    # does not ask for more than he needs still leaves it finished.
                    is_open = self.ranks.go_on(False)
                yield token
        finally:
            if is_open:
                self.ranks.go_on(False)

    def _reusable(self, prompt: Sequence[int]) -> int:
        """Ids at the front of `prompt` that the cache holds; the last one is always run anew,
        because its logits are needed."""
        common = 0
        for held, wanted in zip(self._held, prompt[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        return common

    def _steps(
        self, prompt: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[int, Logprob | None]]:
        """Endless reply to `prompt`; the same on every rank."""
        reused = self._reusable(prompt)
        del self._held[reused:]
        self._cache.sequence_len_offset = reused  # drops what is behind
        sampler = Sampler(sampling, 1, [prompt])
        fresh = list(prompt[reused:])
        while True:
            logits = self._feed(fresh)
            (choice,) = self._choose(sampler, logits, [0], 1)
            fresh = [choice[0]]
            yield choice

    def _feed(self, ids: list[int]) -> torch.Tensor | None:
        logits = None
        for first in range(0, len(ids), _PREFILL_CHUNK):
            chunk = ids[first : first + _PREFILL_CHUNK]
            logits = self.stages.forward(torch.tensor([chunk]), self._cache)
            self._held += chunk
        return logits

    def _choose(
        self, sampler: Sampler, logits: torch.Tensor | None, due: Sequence[int], rows: int
    ) -> list[tuple[int, Logprob | None]]:
        """Next id of each of `rows`, 0 for those that are not due, with its log-probability where
        it is asked for; chosen where the logits are complete and the same everywhere."""
        count = sampler.sampling.logprobs
        tokens = [0] * rows
        numbers = [0.0] * (0 if count is None else len(due) * (1 + 2 * count))
        if self.ranks.is_source:
            assert logits is not None
            last = logits[:, -1]
            tokens = sampler(last, rows=due).tolist()
            if count is not None:
                told = [logprobs_of(last[row], tokens[row], count) for row in due]
                numbers = [x for one in told for x in (one.chosen, *sum(one.top, ()))]
        tokens = self.ranks.share(tokens, src=self.ranks.source)
        if count is None:
            return [(token, None) for token in tokens]
        numbers = self.ranks.share(numbers, src=self.ranks.source, dtype=torch.float64)
        found: list[tuple[int, Logprob | None]] = [(token, None) for token in tokens]
        for at, row in enumerate(due):
            chosen, *rest = numbers[at * (1 + 2 * count) : (at + 1) * (1 + 2 * count)]
            top = [(int(rest[i]), rest[i + 1]) for i in range(0, len(rest), 2)]
            found[row] = (tokens[row], Logprob(chosen, top))
        return found

    def _batch(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        limit: int,
        watched: bool,
        ends: Callable[[int, int], bool] | None,
    ) -> list[Reply]:
        """Prompts that all begin in column 0. Past the shortest one, a row whose prompt goes on
        takes its own next id instead of a drawn one: no padding, no positions of its own."""
        rows, lengths = len(prompts), [len(prompt) for prompt in prompts]
        cache = self.stages.cache(rows, max(lengths) + limit)
        sampler = Sampler(sampling, rows, prompts)
        replies = [Reply(prompt_tokens=length) for length in lengths]
        column = min(lengths)
        fresh = [prompt[:column] for prompt in prompts]
        while True:
            logits = None
            for first in range(0, len(fresh[0]), _PREFILL_CHUNK):
                chunk = [row[first : first + _PREFILL_CHUNK] for row in fresh]
                logits = self.stages.forward(torch.tensor(chunk), cache)
            due = [
                row for row in range(rows) if lengths[row] <= column and replies[row].stop is None
            ]
            drawn = self._choose(sampler, logits, due, rows) if due else [(0, None)] * rows
            for row in due:
                self._take(replies[row], *drawn[row], limit)
            if watched:
                self._end(replies, due, ends)
            if all(reply.stop for reply in replies):
                return replies
            fresh = [
                [prompts[row][column] if column < lengths[row] else drawn[row][0]]
                for row in range(rows)
            ]
            column += 1

    def _take(self, reply: Reply, token: int, logprob: Logprob | None, limit: int) -> None:
        if token in self.stop_ids:
            reply.stop = "stop"
            return
        reply.ids.append(token)
        if logprob is not None:
            reply.logprobs.append(logprob)
        if len(reply.ids) == limit:
            reply.stop = "length"

    def _end(
        self, replies: list[Reply], due: list[int], ends: Callable[[int, int], bool] | None
    ) -> None:
        """End the replies that the leader's `ends` says are over."""
        took = [row for row in due if replies[row].stop != "stop"]
        over = [0] * len(took) if ends is None else [ends(r, replies[r].ids[-1]) for r in took]
        if took:
            for row, flag in zip(took, self.ranks.share(over, src=0), strict=True):
                if flag:
                    replies[row].stop = "stop_string"

    def _scores(self, rows: Sequence[Sequence[list[int]]]) -> list[list[tuple[float, int]]]:
        """Rows filled up behind, where no position before can see it."""
        width = max(len(ids) for ids, _ in rows)
        logits = self.stages.forward(torch.tensor([i + [0] * (width - len(i)) for i, _ in rows]))
        targets = torch.tensor([x[1:] + [IGNORE] * (width - len(x)) for _, x in rows])
        wanted = targets != IGNORE
        counts = wanted.sum(1).tolist()
        losses, best = [0.0] * sum(counts), [0] * sum(counts)
        if self.ranks.is_source:
            assert logits is not None
            kept = logits[:, :-1][wanted.to(logits.device)].float()
            wished = targets[wanted].to(kept.device)[:, None]
            losses = (-kept.log_softmax(-1).gather(-1, wished)[:, 0].double()).tolist()
            best = kept.argmax(-1).tolist()
        losses = self.ranks.share(losses, src=self.ranks.source, dtype=torch.float64)
        pairs = zip(losses, self.ranks.share(best, src=self.ranks.source), strict=True)
        return [list(itertools.islice(pairs, count)) for count in counts]
