"""Owns the cross entropy of an output layer whose logits never exist whole: linear layer, soft cap
and softmax a few rows at a time, the vocabulary split over ranks. It knows no layer and no layout,
only a process group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mindspeed_llm.kernels.linear import Product

CHUNK = 1 << 26  # logits computed at once: 256 MiB in float32
Softmax = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def summed_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    first: int = 0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    chunk: int = CHUNK,
    softmax: Softmax | None = None,
    multiply: Product | None = None,
) -> torch.Tensor:
    """Sum over rows of the cross entropy of `hidden @ weight.T`, float32 scalar.

    The gradients are computed together with the loss, while the logits of a chunk are there, so
    nothing is computed twice and no more than two chunks of logits exist at a time.

    Args:
        hidden: [n, h], the same on every rank of `group`.
        weight: [v, h], same dtype: this rank's rows of the output layer.
        targets: int64 [n], tokens of the whole vocabulary.
        softcap: c of logits c * tanh(logit / c), or None.
        first: token of the weight's first row.
        vocab_size: tokens from here on are padding and get no probability; None: there is none.
        group: ranks over which the vocabulary is split; None: it is whole here.
        chunk: logits of one rank computed at once, at least those of one row.
        softmax: the kernel that takes logits to loss and gradient; None: `softmax_loss`.
        multiply: the kernel of linear layers; None: torch's.
    """
    size = weight.shape[0]
    real = size if vocab_size is None else min(max(vocab_size - first, 0), size)
    rows = max(1, chunk // size)
    alone = group is None or dist.get_world_size(group) == 1
    where = None if alone else group
    kernels = (softmax or softmax_loss, multiply or F.linear)
    options = (softcap, first, real, where, rows, *kernels)
    return _SummedCrossEntropy.apply(hidden, weight, targets, options)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                options: tuple[Any, ...]) -> torch.Tensor:  # fmt: skip
        softcap, first, real, group, rows, softmax, multiply = options
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight, single = None, 0 < len(hidden) <= rows
        if needs_weight and not single:  # float32 whatever the weight is: it sums over chunks
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(hidden), rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows] - first
            logits = multiply(part, weight).float()
            if softcap is not None:
                logits.div_(softcap).tanh_().mul_(softcap)
            logits[:, real:] = -math.inf
            loss, chances = softmax(logits, wanted, group, keep=softcap is not None)
            total += loss
            if not needs_hidden and not needs_weight:
                continue
            if softcap is not None:  # d c tanh(x / c) / dx = 1 - tanh(x / c) ** 2
                slope = logits.div_(softcap).square_().neg_().add_(1.0)
                slope[:, real:] = 0.0
                chances.mul_(slope)
            gradient = chances.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = multiply(gradient, weight.t())
            if needs_weight and single:
                grad_weight = multiply(gradient.t(), part.t())
            elif grad_weight is not None and grad_weight.dtype == part.dtype:
                grad_weight.addmm_(gradient.t(), part)
            elif grad_weight is not None:
                grad_weight += torch.matmul(gradient.t(), part)
        if grad_hidden is not None and group is not None and len(hidden):
            dist.all_reduce(grad_hidden, group=group)
        ctx.gradients = (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        # In place: nothing else holds them.
        hidden, weight = (
            None if kept is None else kept.mul_(grad.to(kept.dtype)) for kept in ctx.gradients
        )
        del ctx.gradients
        return hidden, weight, None, None


def softmax_loss(
    logits: torch.Tensor, targets: torch.Tensor, group: dist.ProcessGroup | None, *, keep: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy and its gradient in the logits, [n, v], of this rank's columns.

    Args:
        logits: float32 [n, v]; overwritten unless `keep`.
        targets: int64 [n], columns here; out of range where another rank has the column.
        group: ranks over which the columns are split; None: they are whole here.
        keep: the logits are needed afterwards.
    """
    highest = logits.amax(1, keepdim=True)
    if group is not None:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - highest if keep else logits.sub_(highest)
    here = (targets >= 0) & (targets < logits.shape[1])
    column = torch.where(here, targets, 0)[:, None]
    # Row sums of exponentials, and the targets' logits, in one message.
    sums = torch.empty(2, len(targets), dtype=torch.float32, device=logits.device)
    sums[1] = torch.where(here, shifted.gather(1, column)[:, 0], 0.0)
    chances = shifted.exp_()
    sums[0] = chances.sum(1)
    if group is not None:
        dist.all_reduce(sums, group=group)
    loss = (sums[0].log() - sums[1]).sum()
    chances.div_(sums[0][:, None])
    chances.scatter_add_(1, column, -here.float()[:, None])
    return loss, chances
