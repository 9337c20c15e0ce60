"""Owns the training loss: the sum of cross entropy over supervised tokens, and the seam that keeps
logits of all other positions from being computed. Knows neither optimizers nor schedules.

The sum is divided once, by the supervised tokens of the whole global batch, so the loss depends
neither on micro-batches nor on the parallel layout.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)

from mindspeed_llm.data.render import IGNORE


class SupervisedPositions:
    """Lets only the chosen positions of the last hidden states reach an output layer.

    A forward pre-hook on `output_layer`, a ColumnParallelLinear whose input is [length, rows,
    hidden] (its own shard of `length` under sequence parallelism). The layer then sees
    [chosen, 1, hidden]: the vocabulary is the widest matrix of a small model, and most positions of
    a conversation are not trained.
    """

    def __init__(self, output_layer: torch.nn.Module) -> None:
        self._chosen: torch.Tensor | None = None
        # Positions are chosen from the whole sequence, so it is gathered here instead of in the
        # layer, which then sums input gradients over TP ranks as it does without SP.
        self._sharded = bool(output_layer.sequence_parallel)
        output_layer.sequence_parallel = False
        self._hook = output_layer.register_forward_pre_hook(self._select)

    def choose(self, targets: torch.Tensor) -> torch.Tensor:
        """Set the positions of the next forward pass; int64 [rows, length] -> targets [chosen]."""
        flat = targets.t().reshape(-1)  # hidden states have the length first
        self._chosen = (flat != IGNORE).nonzero().squeeze(1)
        return flat.index_select(0, self._chosen)

    def remove(self) -> None:
        """Take the hook off; the layer sees all positions again."""
        self._hook.remove()

    def _select(self, _layer: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self._chosen is not None, "choose() goes before every forward pass"
        hidden, *rest = arguments
        if self._sharded:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        chosen = hidden.flatten(0, 1).index_select(0, self._chosen).unsqueeze(1)
        self._chosen = None
        return (chosen, *rest)


def summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of cross entropy, fp32 scalar; zero, with a gradient of zeros, when nothing is chosen.

    Args:
        logits: [chosen, vocabulary / TP], this rank's shard of the vocabulary; overwritten.
        targets: int64 [chosen], tokens of the whole vocabulary.
    """
    return vocab_parallel_cross_entropy(logits, targets).sum()
