"""Owns products of few rows with a weight: how the weight has to lie in memory for them. It knows
no layer and no rank.

One token is multiplied with every weight once, so a weight is read at the speed of memory, or of
the kernel that reads it, whichever is slower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mindspeed_llm.kernels.table import fused

_ROWS = 32  # rows a packed weight is laid out for; with one the difference is not measurable


class Matrix:
    """A linear layer, [t, in] -> [t, out], on the weight of a module.

    On a CPU a weight is packed in oneDNN's blocks where oneDNN is the faster one, and the module's
    own is given up, so that there is never a second one: torch multiplies a row with a plain
    bfloat16 weight at two thirds of that speed. In float32 a weight that somebody else reads stays
    as it is; where MKL computes, plain weights reach memory's speed and wide ones lie along one
    token's product.

    Args:
        weight: [out, in]; emptied where it is packed and not `shared`.
        bias: [out], or None.
        shared: somebody else reads the weight, as an embedding does.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, shared: bool = False
    ) -> None:
        self.bias, self.weight = bias, weight
        self.by_onednn = _by_onednn(weight)
        is_float32 = _is_float32(weight)
        self.is_packed = self.by_onednn and not (is_float32 and shared)
        if not self.is_packed:
            if is_float32 and not self.by_onednn:
                _turn(weight)
            return
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        if not shared:
            weight.data = weight.new_empty(0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, with the bias."""
        return self._product(x, self.bias)

    def alone(self, x: torch.Tensor) -> torch.Tensor:
        """The product without the bias, for ranks that add up parts of it."""
        return self._product(x, None)

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.by_onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return F.linear(x, self.weight, bias)

    def added(self, before: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`before` plus the product, [t, out]: in float32 one operation; below, the product is
        rounded first, as transformers does."""
        if x.dtype is torch.float32 and self.by_onednn:
            add = torch.ops.mkldnn._linear_pointwise.binary
            return add(x, before, self.weight, self.bias, "add")
        if self.bias is None and x.dtype is torch.float32:
            return torch.addmm(before, x, self.weight.t())
        return before + self(x)


def _is_float32(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.float32


def _by_onednn(weight: torch.Tensor) -> bool:
    if _is_float32(weight):
        return fused("linear", "cpu", dtype=torch.float32) is not None
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _turn(weight: torch.Tensor) -> None:
    """Turn a wide matrix around in memory; shape and values stay. Row by row, a product with one
    token is one dot product after another."""
    if weight.shape[0] > weight.shape[1]:
        weight.data = weight.data.t().contiguous().t()
