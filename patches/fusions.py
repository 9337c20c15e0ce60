"""Owns adapters that put our kernels where megatron-core has no seam for them; the register
explains each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mindspeed_llm.kernels.grad_norm import l2_norm
from mindspeed_llm.kernels.table import kernel

_rotation = functools.cache(kernel)


def rotary(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Rotation by the kernel of the tensor's device; `mscale` stays outside cosine and sine."""

    @functools.wraps(original)
    def turn(
        t: torch.Tensor,
        freqs: torch.Tensor,
        rotary_interleaved: bool = False,
        mla_rotary_interleaved: bool = False,
        mscale: float = 1.0,
        multi_latent_attention: bool | None = None,  # its name before 0.19
    ) -> torch.Tensor:
        rotate = _rotation("rotary", t.device.type, dtype=t.dtype, head_dim=freqs.shape[-1],
                           interleaved=rotary_interleaved)  # fmt: skip
        if (
            mla_rotary_interleaved or multi_latent_attention
        ):  # neighbours become halves first, as in the original
            turning, rest = t[..., : freqs.shape[-1]], t[..., freqs.shape[-1] :]
            t = torch.cat((turning[..., 0::2], turning[..., 1::2], rest), dim=-1)
        return rotate(t, freqs, interleaved=rotary_interleaved, scale=mscale)

    return turn


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
