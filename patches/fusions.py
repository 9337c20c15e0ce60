"""Owns adapters that put our kernels where megatron-core has no seam for them; the register
explains each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state

from mindspeed_llm.kernels.grad_norm import l2_norm
from mindspeed_llm.kernels.table import fused, kernel

_rotation = functools.cache(kernel)
_fused = functools.cache(fused)


def rotary(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Rotation by the kernel of the tensor's device; `mscale` stays outside cosine and sine."""

    given = inspect.signature(original)

    @functools.wraps(original)
    def turn(t: torch.Tensor, freqs: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        how = given.bind(t, freqs, *args, **named).arguments
        interleaved = how.get("rotary_interleaved", False)
        rotate = _rotation("rotary", t.device.type, dtype=t.dtype, head_dim=freqs.shape[-1],
                           interleaved=interleaved)  # fmt: skip
        # Neighbours become halves first, as in the original; below 0.19 the first is unknown.
        if how.get("mla_rotary_interleaved") or how.get("multi_latent_attention"):
            turning, rest = t[..., : freqs.shape[-1]], t[..., freqs.shape[-1] :]
            t = torch.cat((turning[..., 0::2], turning[..., 1::2], rest), dim=-1)
        return rotate(t, freqs, interleaved=interleaved, scale=how.get("mscale", 1.0))

    return turn


def linear(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A linear layer's function by the kernel of the tensor's device, where one is fused; what
    gathers a sequence's parts, and what adds to a gradient in place, stays."""

    given = inspect.signature(original)

    @functools.wraps(original)
    def multiply(*args: Any, **named: Any) -> torch.Tensor:
        how = given.bind(*args, **named).arguments
        x, weight, bias = how["input"], how["weight"], how["bias"]
        product = _fused("linear", x.device.type, dtype=x.dtype)
        others = (how["gradient_accumulation_fusion"], how["sequence_parallel"],
                  how.get("grad_output_buffer") is not None, x.dtype != weight.dtype)  # fmt: skip
        if product is None or any(others):
            return original(*args, **named)
        group = None
        if how["allreduce_dgrad"]:
            group = how.get("tp_group") or parallel_state.get_tensor_model_parallel_group()
        output = product(x, weight, group)
        return output if bias is None else output + bias

    return multiply


def gradient_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    """Norm of gradients that stays on the device; Transformer Engine's and apex's stay."""
    if original.__name__ != "local_multi_tensor_l2_norm":
        return original

    @functools.wraps(original)
    def norm(
        chunk_size: int,
        noop_flag: torch.Tensor,
        tensor_lists: Sequence[Sequence[torch.Tensor]],
        per_tensor: bool,
        *args: Any,
    ) -> tuple[torch.Tensor, None]:
        assert not per_tensor, "megatron-core asks for no norm of each tensor"
        return l2_norm([tensor for tensors in tensor_lists for tensor in tensors]), None

    return norm
