"""Owns the training loss: the sum of cross entropy over supervised tokens, and the seam that keeps
logits of all other positions, and whole logits of any, from being computed. Knows neither
optimizers nor schedules.

The sum is divided once, by the supervised tokens of the whole global batch, so the loss depends
neither on micro-batches nor on the parallel layout.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.kernels.cross_entropy import summed_cross_entropy
from mindspeed_llm.kernels.table import kernel
from mindspeed_llm.training.turns import MOST


class SupervisedLoss:
    """Makes a model answer with its loss, fp32 [1, 1, 1], in place of logits.

    Takes the place of the output layer's forward pass, whose input is [length, rows, hidden] (its
    own shard of `length` under sequence parallelism), and of the hook behind it. Only positions
    that are trained reach the vocabulary, the widest matrix of a small model, and their logits
    exist a chunk at a time. Zero, with a gradient of zeros, when nothing is chosen.
    """

    def __init__(self, model: GPTModel) -> None:
        self._model, self._layer = model, model.output_layer
        self._targets: torch.Tensor | None = None
        split = parallel_state.get_tensor_model_parallel_world_size() > 1
        device = model.config.kernel_device
        self._softmax = kernel("cross_entropy", device, split=split)
        self._multiply = kernel("linear", device, dtype=model.config.params_dtype)
        self._turns: torch.Tensor | None = None
        self._layer.forward = self._forward
        model.finish_logits_hook.remove()

    def choose(self, targets: torch.Tensor, turns: torch.Tensor | None = None) -> None:
        """Set the targets of the next forward pass: int64 [rows, length], IGNORE or a token.

        With `turns`, int64 of the same shape (see `turns_of`), the answer is a loss for each of
        the turns 1 to MOST, fp32 [1, 1, MOST]; their sum is the loss.
        """
        self._targets = targets.t().reshape(-1)  # hidden states have the length first
        self._turns = None if turns is None else turns.t().reshape(-1)

    def remove(self) -> None:
        """Let the model answer with logits again."""
        del self._layer.forward
        finish = self._model.finish_logits
        self._model.finish_logits_hook = self._layer.register_forward_hook(finish)

    def _forward(
        self, hidden: torch.Tensor, weight: torch.Tensor | None = None, **_options: Any
    ) -> tuple[torch.Tensor, None]:
        assert self._targets is not None, "choose() goes before every forward pass"
        targets, self._targets = self._targets, None
        if self._layer.sequence_parallel:
            # The loss sums gradients over TP ranks itself: none are left to sum here.
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        weight = self._layer.weight if weight is None else weight
        turns, self._turns = self._turns, None
        if turns is None:
            return self._total(hidden, weight, targets, targets != IGNORE).view(1, 1, 1), None
        turns = turns.clamp(max=MOST)
        zero = torch.zeros((), dtype=torch.float32, device=hidden.device)
        present = set(turns.unique().tolist())
        sums = [
            self._total(hidden, weight, targets, turns == turn) if turn in present else zero
            for turn in range(1, MOST + 1)
        ]
        return torch.stack(sums).view(1, 1, MOST), None

    def _total(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of the positions in `wanted`, bool [length x rows]; scalar."""
        chosen = wanted.nonzero().squeeze(1)
        finish = self._model.finish_logits
        return summed_cross_entropy(
            hidden.flatten(0, 1).index_select(0, chosen),
            weight,
            targets.index_select(0, chosen),
            softcap=finish.softcap,
            first=parallel_state.get_tensor_model_parallel_rank() * weight.shape[0],
            vocab_size=finish.vocab_size,
            group=parallel_state.get_tensor_model_parallel_group(),
            softmax=self._softmax,
            multiply=self._multiply,
        )
