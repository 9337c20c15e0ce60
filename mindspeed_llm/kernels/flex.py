"""Owns attention through torch's FlexAttention: soft cap, window and sequences of a packed row in
one compiled kernel; knows no layer. Dong et al. 2024, torch.nn.attention.flex_attention.

The same functions run uncompiled on a CPU, scores and all, which is how they are tested there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mindspeed_llm.kernels import attention as plain


@functools.cache
def _run(device: str) -> Callable[..., torch.Tensor]:
    """Compiled where a compiler makes one kernel of it. Not on a CPU: there it has no backward pass
    then, and masks that read a length or a tensor do not compile (torch 2.13: Inductor renames the
    size `ks1` by text, CppFlexAttentionTemplate, and makes `cur_qSplitSize8` of `ks18`)."""
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def _cap(softcap: float | None) -> Callable[..., torch.Tensor] | None:
    if softcap is None:
        return None

    def cap(score: torch.Tensor, *_where: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    hidden: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention.attention` by flex_attention; `hidden` is done by the plain kernel."""
    plain.expect(query, key, window=window, dropout=dropout)
    if hidden is not None:
        return plain.attention(query, key, value, scale=scale, window=window, softcap=softcap,
                               hidden=hidden)  # fmt: skip
    sq, sk = query.shape[0], key.shape[0]
    seen = _dense_mask(sq, sk, window, query.device)
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    out = _call(q, k, v, softcap, seen, scale)
    return out.permute(2, 0, 1, 3).flatten(2)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seqlens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention.packed_attention` by flex_attention, one call for all sequences."""
    plain.expect(query, key, cu_seqlens=cu_seqlens, window=window, dropout=dropout)
    seen = _packed_mask(tuple(cu_seqlens), window, query.device)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return _call(q, k, v, softcap, seen, scale)[0].transpose(0, 1).flatten(1)


def _call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softcap: float | None,
    seen: BlockMask,
    scale: float,
) -> torch.Tensor:
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    return _run(q.device.type)(q, k, v, _cap(softcap), seen, **options)


@functools.lru_cache(maxsize=16)
def _dense_mask(sq: int, sk: int, window: int | None, device: torch.device) -> BlockMask:
    """Blocks of keys that are seen; made once for all layers of a length."""

    def seen(_b: Any, _h: Any, at: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        back = at + (sk - sq) - to
        return back >= 0 if window is None else (back >= 0) & (back < window)

    return create_block_mask(seen, None, None, sq, sk, device=device.type)


@functools.lru_cache(maxsize=16)
def _packed_mask(bounds: tuple[int, ...], window: int | None, device: torch.device) -> BlockMask:
    """The same for the sequences of a packed row; made once for all layers of a batch."""
    lengths = torch.tensor([b - a for a, b in zip(bounds, bounds[1:], strict=False)])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)

    def seen(_b: Any, _h: Any, at: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        inside = (owner[at] == owner[to]) & (at >= to)
        return inside if window is None else inside & (at - to < window)

    return create_block_mask(seen, None, None, bounds[-1], bounds[-1], device=device.type)
