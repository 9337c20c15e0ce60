"""Owns products with the weight of a linear layer, forward and backward. It knows no layer and no
layout, only a process group.

On x86 torch computes float32 products with MKL, which has AVX-512 kernels for its maker's own
processors and takes AVX2 ones on others; oneDNN, which torch carries too and calls for bfloat16,
has AVX-512 kernels for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain(
    x: torch.Tensor, weight: torch.Tensor, reduce: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """`x @ weight.T` with torch's own products; arguments as in `onednn`."""
    return _applied(x, weight, reduce, F.linear)


def onednn(
    x: torch.Tensor, weight: torch.Tensor, reduce: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """`x @ weight.T` and its gradients with oneDNN's products.

    Args:
        x: [..., in], on a CPU.
        weight: [out, in], same dtype.
        reduce: ranks that have other rows of one weight, whose gradients of x are summed; None:
            the gradient is this rank's.

    Returns:
        [..., out].
    """
    return _applied(x, weight, reduce, product)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`onednn` of [n, in] without gradients; both may lie transposed in memory."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], weight.shape[0])
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _applied(
    x: torch.Tensor, weight: torch.Tensor, reduce: dist.ProcessGroup | None, multiply: Product
) -> torch.Tensor:
    # Of two dimensions: a view made inside the function could not be changed in place outside.
    out = _Linear.apply(x.flatten(0, -2), weight, reduce, multiply)
    return out.view(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, group: dist.ProcessGroup | None,
                multiply: Product) -> torch.Tensor:  # fmt: skip
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.group, ctx.multiply = group, multiply
        return multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        grad_x = None if weight is None else ctx.multiply(grad, weight.t())
        sent = None
        if grad_x is not None and ctx.group is not None:
            sent = dist.all_reduce(grad_x, group=ctx.group, async_op=True)
        grad_weight = None
        if x is not None:  # while the other travels
            grad_weight = ctx.multiply(grad.t(), x.t())
        if sent is not None:
            sent.wait()
        return grad_x, grad_weight, None, None


@functools.cache
def mkl_suffices() -> str | None:
    """Why oneDNN is no faster in float32 than what torch calls here, or None."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkl.is_available():
        return "this torch has not both MKL and oneDNN"
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return "this processor has no AVX-512"
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError as error:
        return f"the processor's maker is unknown: {error}"
    return "MKL has AVX-512 kernels for this processor" if "GenuineIntel" in processor else None
