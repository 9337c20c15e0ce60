"""Owns adapters for the core attention of models that are not ours, which takes no packed rows;
the register explains each."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import tensor_parallel

from mindspeed_llm.kernels.table import kernel
from mindspeed_llm.models.layers import boundaries

_kernel = functools.cache(kernel)


def packed_rows(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """DotProductAttention.forward that takes packed rows: no sequence sees another."""

    @functools.wraps(original)
    def forward(
        self: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        packed_seq_params: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if packed_seq_params is None:
            return original(self, query, key, value, attention_mask, *args, **kwargs)
        if kwargs.get("attention_bias") is not None:
            raise ValueError("packed rows take no attention bias")
        dropout = self.attention_dropout.p if self.training else 0.0
        need = {"window": _window(self), "dropout": dropout}
        attention = _kernel("packed_attention", query.device.type, dtype=query.dtype,
                            head_dim=query.shape[-1], **need)  # fmt: skip
        with _draws(self, dropout):
            return attention(query, key, value, cu_seqlens=boundaries(packed_seq_params),
                             scale=self.softmax_scale, softcap=None, **need)  # fmt: skip

    return forward


def _window(attention: Any) -> int | None:
    """Keys that a query sees, itself among them; megatron-core says how many lie to its left."""
    sides = getattr(attention.scale_mask_softmax, "window_size", None)
    return None if sides is None or sides[0] < 0 else sides[0] + 1


def _draws(attention: Any, dropout: float) -> Any:
    """Heads are spread over ranks: each draws its own dropout, as in the original."""
    if dropout == 0 or attention.config.sequence_parallel:
        return contextlib.nullcontext()
    return tensor_parallel.get_cuda_rng_tracker().fork()
