"""Owns activation functions of gated MLPs as named functions (a config that holds one can be copied
and pickled); knows no module.

Shapes: x [..., 2f] is gate and up projection side by side; results are [..., f].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by its tanh approximation (Hendrycks and Gimpel 2016), Gemma's activation."""
    return F.gelu(x, approximate="tanh")


def gelu_erf(x: torch.Tensor) -> torch.Tensor:
    """The exact GELU (Hendrycks and Gimpel 2016). Not on an NPU: F.gelu computes tanh there."""
    return F.gelu(x)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
}


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020) of x = [gate, up]."""
    return _Gated.apply(x, "silu")


def geglu(x: torch.Tensor) -> torch.Tensor:
    """gelu_tanh(gate) * up (Shazeer 2020, with tanh-GELU) of x = [gate, up]."""
    return _Gated.apply(x, "tanh")


def geglu_erf(x: torch.Tensor) -> torch.Tensor:
    """gelu(gate) * up with the exact GELU of x = [gate, up]."""
    return _Gated.apply(x, "none")


class _Gated(torch.autograd.Function):
    """Keeps its input alone: the activated gate is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kind: str) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.kind = kind
        gate, up = x.chunk(2, dim=-1)
        return _activated(gate, kind).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        both = torch.empty_like(x)
        for_gate, for_up = both.chunk(2, dim=-1)
        torch.mul(grad, _activated(gate, ctx.kind), out=for_up)
        through = grad * up
        if ctx.kind == "silu":
            for_gate.copy_(torch.ops.aten.silu_backward(through, gate))
        else:
            for_gate.copy_(torch.ops.aten.gelu_backward(through, gate, approximate=ctx.kind))
        return both, None


def _activated(gate: torch.Tensor, kind: str) -> torch.Tensor:
    return F.silu(gate) if kind == "silu" else F.gelu(gate, approximate=kind)


# name in a model's configuration -> operation of the kernel table
GATED: dict[str, str] = {"silu": "swiglu", "gelu": "geglu_erf", "gelu_tanh": "geglu_tanh"}
