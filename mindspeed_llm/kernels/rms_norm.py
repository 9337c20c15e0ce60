"""Owns root-mean-square normalisation in plain torch; knows no configuration and no module.

Shapes: x [..., h], weight [h].
"""

from __future__ import annotations

import torch


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
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if zero_centered:
        return (normed * (1.0 + weight.float())).to(x.dtype)
    return weight * normed.to(x.dtype)
