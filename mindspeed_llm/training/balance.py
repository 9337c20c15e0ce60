"""Owns the balancing loss in training: which tokens count, how much it weighs against the cross
entropy, and how its gradient joins the router's. The arithmetic is `kernels.load_balance`.

What is minimised is the cross entropy of a supervised token plus, for every layer with experts, the
coefficient times the mean balancing loss of the micro-batches, each weighted by its tokens.
megatron-core's own counts padding, and its weight depends on how many tokens are supervised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe.router import TopKRouter

from mindspeed_llm.kernels.load_balance import load_balance
from mindspeed_llm.training.batch import MicroBatch


class _Attach(torch.autograd.Function):
    """x as it is; backward also gives `loss` a gradient of one."""

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor, _loss: torch.Tensor) -> torch.Tensor:
        """x."""
        return x

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of x, and 1."""
        return gradient, gradient.new_ones((), dtype=torch.float32)


class Balance:
    """Adds the balancing loss to every router of `models`, in training passes only.

    Args:
        models: this rank's parts of the model.
        coefficient: weight of a layer's loss beside the mean cross entropy.
    """

    def __init__(self, models: Sequence[GPTModel], coefficient: float) -> None:
        self.coefficient = coefficient
        self._weight = 0.0
        self._counted: torch.Tensor | None = None
        for model in models:
            for module in model.modules():
                if isinstance(module, TopKRouter):
                    module.register_forward_hook(self._add)

    def start(self, micro_batches: Sequence[MicroBatch], device: torch.device) -> None:
        """Weigh the losses of a global batch; these are this rank's micro-batches of it.

        Gradients are divided by the supervised tokens of the global batch in the end, so each
        micro-batch's loss is multiplied by its tokens and by supervised tokens per token.
        """
        counts = torch.tensor(
            [[batch.supervised, batch.real.sum()] for batch in micro_batches],
            dtype=torch.float64 if device.type == "cpu" else torch.float32,
        ).sum(0)
        counts = counts.to(device)
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        torch.distributed.all_reduce(counts, group=group)
        supervised, tokens = counts.tolist()
        self._weight = self.coefficient * supervised / max(tokens, 1)

    def choose(self, real: torch.Tensor) -> None:
        """Set which tokens of the next forward pass count: bool [rows, length]."""
        self._counted = real.t().contiguous()  # hidden states have the length first

    def _add(
        self,
        router: TopKRouter,
        inputs: tuple[torch.Tensor, ...],
        output: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not (router.training and torch.is_grad_enabled()):
            return None
        assert self._counted is not None, "choose() goes before every forward pass"
        counted, (weights, chosen) = self._counted, output
        if router.config.sequence_parallel:
            ranks = parallel_state.get_tensor_model_parallel_world_size()
            counted = counted.chunk(ranks)[parallel_state.get_tensor_model_parallel_rank()]
        logits = router.gating(inputs[0])
        group = parallel_state.get_tensor_and_context_parallel_group()
        loss, tokens = load_balance(
            logits.flatten(0, -2), chosen.flatten(0, -2), counted.flatten(), group
        )
        return _Attach.apply(weights, loss * tokens * self._weight), chosen
