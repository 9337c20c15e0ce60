"""Owns rotary position embedding in plain torch: inverse frequencies and the rotation.

Shapes: s positions, b batch, n heads, d head dimension. Dimension i turns together with i + d/2
(as in GPT-NeoX and transformers), not with its neighbour.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def inverse_frequencies(dim: int, theta: float, *, factor: float = 1.0) -> torch.Tensor:
    """theta ** (-2i / dim), float32 [dim / 2] on the CPU (Su et al. 2021).

    `factor` > 1 stretches positions linearly (Chen et al. 2023). The order of operations is
    transformers', so that the bits are too.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    frequencies = 1.0 / (theta**exponent)
    return frequencies if factor == 1.0 else frequencies / factor


def llama3_frequencies(
    frequencies: torch.Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position: int,
) -> torch.Tensor:
    """Llama 3.1's stretching by bands of wavelength, of [d / 2] inverse frequencies.

    Wavelengths below original_max_position / high_freq_factor stay, those above
    original_max_position / low_freq_factor are divided by `factor`, between the two it is
    interpolated (Llama 3.1 reference code; the rounding is transformers').
    """
    wavelength = 2 * math.pi / frequencies
    longest = original_max_position / low_freq_factor
    shortest = original_max_position / high_freq_factor
    stretched = torch.where(wavelength > longest, frequencies / factor, frequencies)
    smooth = (original_max_position / wavelength - low_freq_factor) / (
        high_freq_factor - low_freq_factor
    )
    blended = (1 - smooth) * stretched / factor + smooth * stretched
    between = ~(wavelength < shortest) & ~(wavelength > longest)
    return torch.where(between, blended, stretched)


def yarn_frequencies(
    dim: int,
    theta: float,
    *,
    factor: float,
    original_max_position: float,
    beta_fast: float,
    beta_slow: float,
    whole_dimensions: bool,
) -> torch.Tensor:
    """YaRN's stretching, float32 [dim / 2] on the CPU (Peng et al. 2023).

    Frequencies that turn more than `beta_fast` times within the original context stay, those that
    turn less than `beta_slow` times are divided by `factor`, and in between it is blended by the
    dimension's number. The order of operations is transformers'.

    Args:
        whole_dimensions: round the first and the last dimension of the blend outwards.
    """
    ends = [
        dim * math.log(original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (beta_fast, beta_slow)
    ]
    if whole_dimensions:
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    low, high = max(ends[0], 0), min(ends[1], dim - 1)
    width = high - low if high != low else 0.001
    powers = theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    steps = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((steps - low) / width).clamp(0, 1)
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept


def longrope_frequencies(dim: int, theta: float, factors: tuple[float, ...]) -> torch.Tensor:
    """1 / (factor_i * theta ** (2i / dim)), float32 [dim / 2] on the CPU (LongRoPE, 2024).

    `factors` has one divisor a frequency; the order of operations is transformers'.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * theta**exponent)


def angles(positions: int, frequencies: torch.Tensor) -> torch.Tensor:
    """Angles of positions 0 .. positions-1: float32 [s, 1, 1, d], both halves alike."""
    steps = torch.arange(positions, dtype=torch.float32, device=frequencies.device)
    half = torch.outer(steps, frequencies)
    return torch.cat((half, half), dim=-1)[:, None, None, :]


def rotate(
    x: torch.Tensor, angle: torch.Tensor, *, interleaved: bool = False, scale: float = 1.0
) -> torch.Tensor:
    """x [s, b, n, d] turned by angle [s, 1, 1, r]; cosine and sine are rounded to x's dtype.

    The first r <= d dimensions turn, the others stay (partial rotation).

    Args:
        x: floating.
        angle: float32; one for each dimension that turns.
        interleaved: a dimension turns with its neighbour instead of with the other half.
        scale: factor of what has turned (YaRN's mscale). It stays outside cosine and sine, which
            kernels want within [-1, 1].
    """
    turning = angle.shape[-1]
    if turning < x.shape[-1] and (interleaved or scale != 1.0):
        turned = rotate(x[..., :turning], angle, interleaved=interleaved, scale=scale)
        return torch.cat((turned, x[..., turning:]), dim=-1)
    if interleaved:
        quarter = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
        turned = x * angle.cos().to(x.dtype) + quarter * angle.sin().to(x.dtype)
    else:
        turned = _Rotation.apply(x, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
    return turned if scale == 1.0 else turned * scale


class _Rotation(torch.autograd.Function):
    """Turns the halves of the first dimensions; its gradient is the rotation back, and keeps no
    input. Rolled rows are multiplied whole: bfloat16's kernels are slow with parts of a vector."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        end, half = cos.shape[-1], cos.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        ctx.save_for_backward(cos, signed)
        moving = x[..., :end]
        turned = moving * cos
        turned += moving.roll(half, -1).mul_(signed)
        return turned if end == x.shape[-1] else torch.cat((turned, x[..., end:]), dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, signed = ctx.saved_tensors
        end = cos.shape[-1]
        moving = grad[..., :end]
        back = moving * cos
        back += (moving * signed).roll(end // 2, -1)
        whole = end == grad.shape[-1]
        return back if whole else torch.cat((back, grad[..., end:]), dim=-1), None, None
