"""Owns root-mean-square normalisation in plain torch; knows no configuration and no module.

Shapes: x [..., h], weight [h].
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, *, zero_centered: bool
) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019), computed in float32.

    Args:
        x: [..., h], any floating dtype.
        weight: [h]; applied as it is, or as 1 + weight with `zero_centered` (Gemma).
        epsilon: added to the mean square.
        zero_centered: also decides where the result is rounded to x's dtype, as in transformers:
            Llama rounds before it multiplies by the weight, Gemma after.

    Returns:
        [..., h]; x's dtype, or the wider of x's and the weight's dtype without `zero_centered`.
    """
    return _RMSNorm.apply(x, weight, epsilon, zero_centered)


class _RMSNorm(torch.autograd.Function):
    """Its gradient written out: of the input, the weight and a number a row, nothing else is kept,
    and memory is passed over a third as often as by the gradients of single operations."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, zero_centered: bool
    ) -> torch.Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        ctx.zero_centered = zero_centered
        normed = wide * inverse
        if zero_centered:
            return normed.mul_(1.0 + weight.float()).to(x.dtype)
        return weight * normed.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide, given, width = x.float(), grad.float(), x.shape[-1]
        factor = 1.0 + weight.float() if ctx.zero_centered else weight.float()
        normed = wide * inverse
        share = given * normed  # of a weight's gradient
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = share.reshape(-1, width).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None, None
        # d x_i = (g_i w_i - n_i mean_j(g_j w_j n_j)) / rms, with n = x / rms
        mean = (share @ factor).div_(width).unsqueeze(-1)
        for_x = torch.mul(given, factor, out=share).addcmul_(normed, mean, value=-1.0)
        return for_x.mul_(inverse).to(x.dtype), for_weight, None, None
