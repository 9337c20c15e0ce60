"""Owns the choice of the next token from logits; knows neither models nor caches nor text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 is greedy, and the rest is then without effect.
        top_k: only the k most probable tokens stay; 0 keeps all.
        top_p: only the most probable tokens whose sum just reaches p stay (nucleus sampling,
            Holtzman et al. 2020); 1 keeps all.
        seed: the same seed, prompt and weights draw the same tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ConfigError(f"--top-k is {self.top_k}; expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}; expected above 0 and at most 1")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


GREEDY = Sampling()


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Distribution that is drawn from: temperature, then top-k, then top-p.

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
        chances = chances / chances.sum(dim=-1, keepdim=True)
    return chances


class Sampler:
    """Draws tokens for a batch; each row has its own generator, so rows do not affect each other.

    Generators live on the CPU: the draw is the same on every device.
    """

    def __init__(self, sampling: Sampling, rows: int = 1) -> None:
        self.sampling = sampling
        self._generators = [torch.Generator().manual_seed(sampling.seed) for _ in range(rows)]

    def __call__(self, logits: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Next tokens.

        Args:
            logits: [rows, vocabulary].
            rows: rows to draw for; the others are 0 and their generators stay as they are.

        Returns:
            int64 [rows], on the CPU.
        """
        if self.sampling.is_greedy:
            return logits.argmax(dim=-1).cpu()
        chances = probabilities(logits, self.sampling).cpu()
        tokens = torch.zeros(len(self._generators), dtype=torch.int64)
        for row in range(len(self._generators)) if rows is None else rows:
            tokens[row] = torch.multinomial(chances[row], 1, generator=self._generators[row])[0]
        return tokens
