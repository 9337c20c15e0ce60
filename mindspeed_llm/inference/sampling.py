"""Owns the choice of the next token from logits; knows neither models nor caches nor text."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mindspeed_llm.errors import ConfigError

MOST_LOGPROBS = 20  # alternatives a token; OpenAI's own bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn, and what is told of it.

    Attributes:
        temperature: logits are divided by it; 0 is greedy, and top_k, top_p, min_p and seed are
            then without effect.
        top_k: only the k most probable tokens stay; 0 keeps all.
        top_p: only the most probable tokens whose sum just reaches p stay (nucleus sampling,
            Holtzman et al. 2020); 1 keeps all.
        min_p: only tokens with at least this share of the most probable one's chance stay
            (Nguyen et al. 2024); 0 keeps all.
        repetition_penalty: logits of tokens that prompt or reply already hold are divided by it
            where positive and multiplied where negative (CTRL, Keskar et al. 2019); 1 is none.
            It counts for greedy replies too.
        seed: the same seed, prompt and weights draw the same tokens.
        logprobs: alternatives told with each token's log-probability; None tells nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 1234
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ConfigError(f"--top-k is {self.top_k}; expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}; expected above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"--min-p is {self.min_p}; expected 0 (all tokens) to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(
                f"--repetition-penalty is {self.repetition_penalty}; expected above 0, 1 for none"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; expected 0 to 2**63 - 1")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ConfigError(f"--logprobs is {self.logprobs}; expected 0 to {MOST_LOGPROBS}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def idle(self) -> tuple[str, ...]:
        """Names of settings that were changed and have no effect, since the choice is greedy."""
        if not self.is_greedy:
            return ()
        names = ("top_k", "top_p", "min_p")
        return tuple(name for name in names if getattr(self, name) != getattr(GREEDY, name))


GREEDY = Sampling()


def of_prompts(sampling: Sampling, prompts: Sequence[Sequence[int]]) -> list[Sampling]:
    """Sampling of each prompt, with a seed of its own: a hash of the seed, the prompt's ids and how
    often they came before. So it depends neither on the order of the prompts nor on what else is
    asked, and a prompt that is asked twice is drawn twice.

    Greedy sampling stays as it is.
    """
    if sampling.is_greedy:
        return [sampling] * len(prompts)
    times: collections.Counter[tuple[int, ...]] = collections.Counter()
    found = []
    for prompt in prompts:
        ids = tuple(prompt)
        text = json.dumps([sampling.seed, times[ids], ids])
        times[ids] += 1
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        found.append(dataclasses.replace(sampling, seed=seed))
    return found


class Logprob(NamedTuple):
    """Natural log-probability of a token under the model itself, before penalty, temperature and
    filters, and the most probable (id, log-probability) at its place."""

    chosen: float
    top: list[tuple[int, float]]


def penalized(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits with the repetition penalty on tokens that are marked in `seen`.

    Args:
        logits: float [..., vocabulary].
        seen: boolean, same shape.
        penalty: above 0.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Distribution that is drawn from: temperature, then top-k, top-p, min-p (transformers' order).

    Args:
        logits: [..., vocabulary], any float type.
        sampling: not greedy.

    Returns:
        fp32 probabilities of the same shape; every row sums to 1.
    """
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        # The k-th value as threshold keeps ties, so the result does not depend on their order.
        lowest = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < lowest, -torch.inf)
    chances = scores.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        kept = ordered.masked_fill(before >= sampling.top_p, 0.0)
        chances = torch.zeros_like(chances).scatter(-1, order, kept)
    if sampling.min_p > 0:
        chances = chances.masked_fill(chances < sampling.min_p * chances.amax(-1, True), 0.0)
    return chances / chances.sum(dim=-1, keepdim=True)


def logprobs_of(logits: torch.Tensor, token: int, count: int) -> Logprob:
    """What the model itself gives `token` and the `count` most probable; logits [vocabulary]."""
    scores = logits.float().log_softmax(-1)
    best = scores.topk(count)
    top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Logprob(float(scores[token]), top)


class Sampler:
    """Draws tokens for a batch; each row has its own generator, so rows do not affect each other.

    Generators live on the CPU: the draw is the same on every device.

    Args:
        sampling: how.
        rows: rows of the batch.
        prompts: ids of each row's prompt, for the repetition penalty; drawn tokens are added.
    """

    def __init__(
        self, sampling: Sampling, rows: int = 1, prompts: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.sampling = sampling
        self._generators = [torch.Generator().manual_seed(sampling.seed) for _ in range(rows)]
        self._prompts = [[] for _ in range(rows)] if prompts is None else prompts
        self._seen: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Next tokens.

        Args:
            logits: [rows, vocabulary].
            rows: rows to draw for; the others are 0 and their generators stay as they are.

        Returns:
            int64 [rows], on the CPU.
        """
        due = list(range(len(self._generators)) if rows is None else rows)
        logits = self._penalized(logits)
        tokens = torch.zeros(len(self._generators), dtype=torch.int64)
        if self.sampling.is_greedy:
            tokens[due] = logits.argmax(dim=-1).cpu()[due]
        else:
            chances = probabilities(logits, self.sampling).cpu()
            for row in due:
                tokens[row] = torch.multinomial(chances[row], 1, generator=self._generators[row])[0]
        if self._seen is not None:
            self._seen[due, tokens[due].to(self._seen.device)] = True
        return tokens

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return logits
        if self._seen is None:
            self._seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            for row, ids in enumerate(self._prompts):
                self._seen[row, torch.tensor(ids, dtype=torch.int64)] = True
        return penalized(logits.float(), self._seen, penalty)
