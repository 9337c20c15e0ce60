"""Owns the calls of Liger's Triton kernels in the shapes of the plain ones; it imports Liger when
it is called, and knows no layer. Source: liger_kernel.ops of 0.8.5 (linkedin/Liger-Kernel)."""

from __future__ import annotations

import torch


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, *, zero_centered: bool
) -> torch.Tensor:
    """`rms_norm.rms_norm`; the casting modes are Liger's names for where the result is rounded."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    offset, mode = (1.0, "gemma") if zero_centered else (0.0, "llama")
    return LigerRMSNormFunction.apply(x, weight, epsilon, offset, mode, False)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """`activation.swiglu`."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gate, up = x.chunk(2, dim=-1)
    return LigerSiLUMulFunction.apply(gate.contiguous(), up.contiguous())


def geglu_tanh(x: torch.Tensor) -> torch.Tensor:
    """`activation.geglu`."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    gate, up = x.chunk(2, dim=-1)
    return LigerGELUMulFunction.apply(gate.contiguous(), up.contiguous())
