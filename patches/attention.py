"""Owns adapters for the core attention of models that are not ours, which takes no packed rows and
writes its scores out; the register explains each."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType

from mindspeed_llm.kernels.dispatch import fall_back
from mindspeed_llm.kernels.table import fused, kernel
from mindspeed_llm.models.layers import boundaries

_packed = functools.cache(kernel)
_fused = functools.cache(fused)
_KIND = "mindspeed_llm_kind"  # attribute of a mask that was looked at


def fused_attention(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """DotProductAttention.forward by a fused kernel, packed rows included: no sequence of theirs
    sees another. What no kernel does is done by the original."""

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
        packed = packed_seq_params is not None
        asked = (query, key, value, None if packed else attention_mask)
        biased = len(args) > 1 or kwargs.get("attention_bias") is not None
        cause = _beyond(self, *asked, packed=packed, biased=biased)
        if packed and cause is not None:
            raise ValueError(f"packed rows do not take {cause}")
        dropout = self.attention_dropout.p if self.training else 0.0
        how = {"window": _window(self), "dropout": dropout}
        need = {"dtype": query.dtype, "head_dim": query.shape[-1], **how}
        how |= {"scale": self.softmax_scale * (self.scale_mask_softmax.scale or 1.0)}
        device = query.device.type
        if packed:
            attention = _packed("packed_attention", device, **need)
            how |= {"cu_seqlens": boundaries(packed_seq_params)}
        else:
            attention = _fused("attention", device, **need)
            if cause is not None and device == "npu":
                fall_back(f"attention with {cause} is megatron-core's own")
            if cause is not None or attention is None:
                return original(self, query, key, value, attention_mask, *args, **kwargs)
            how |= {"hidden": attention_mask if _kind(attention_mask) == "more" else None}
        with _draws(self, dropout):
            return attention(query, key, value, softcap=None, **how)

    return forward


def _beyond(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    packed: bool,
    biased: bool,
) -> str | None:
    """What the kernels do not do of what is asked for; None where they do it all."""
    softmax = attention.scale_mask_softmax
    sides = getattr(softmax, "window_size", None)
    causal = {AttnMaskType.causal} | ({AttnMaskType.padding_causal} if packed else set())
    causes = {
        "an attention bias": biased,
        "attention that is not causal": attention.attn_mask_type not in causal,
        "a window that looks ahead": sides is not None and sides[1] > 0,
        "an offset of the softmax": getattr(attention, "softmax_offset", None) is not None,
        "values of another size than keys": query.shape[-1] != value.shape[-1],
        "fewer queries than keys": len(query) != len(key) and len(query) != 1,
        "a mask for cached keys": mask is not None and len(query) != len(key),
    }
    found = next((name for name, here in causes.items() if here), None)
    if found is None and _kind(mask) == "ahead":
        return "a mask that lets queries look ahead"
    return found


def _kind(mask: torch.Tensor | None) -> str:
    """What a mask [b or 1, 1, s, s], True where a key is hidden, adds to causality: "nothing",
    "more" that is hidden, or "ahead" is in sight. Looked at once, which waits for the device."""
    if mask is None:
        return "nothing"
    found = getattr(mask, _KIND, None)
    if found is None:
        future = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu_(1)
        hidden = mask.bool()
        found = "ahead"
        if mask.shape[-2] == mask.shape[-1] and bool((hidden | ~future).all()):
            found = "nothing" if bool((hidden == future).all()) else "more"
        setattr(mask, _KIND, found)
    return found


def _window(attention: Any) -> int | None:
    """Keys that a query sees, itself among them; megatron-core says how many lie to its left."""
    sides = getattr(attention.scale_mask_softmax, "window_size", None)
    return None if sides is None or sides[0] < 0 else sides[0] + 1


def _draws(attention: Any, dropout: float) -> Any:
    """Heads are spread over ranks: each draws its own dropout, as in the original."""
    if dropout == 0 or attention.config.sequence_parallel:
        return contextlib.nullcontext()
    return tensor_parallel.get_cuda_rng_tracker().fork()
