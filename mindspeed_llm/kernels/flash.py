"""Owns the calls of the flash-attn packages: flash_attn on CUDA and flash_attn_npu on Ascend, which
have one interface; knows no layer. Source: the docstrings of flash_attn_func and
flash_attn_varlen_func (Dao-AILab/flash-attention, 2.6 or newer for softcap)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch

from mindspeed_llm.kernels import attention as plain

_PACKAGES = {"cuda": "flash_attn", "npu": "flash_attn_npu"}


def _package(device: torch.device) -> ModuleType:
    return importlib.import_module(_PACKAGES[device.type])


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
    """`attention.attention` by flash_attn_func, which aligns queries with the last keys; a mask of
    its own (`hidden`) it does not take, and the plain kernel does that."""
    plain.expect(query, key, window=window)
    if hidden is not None:
        return plain.attention(query, key, value, scale=scale, window=window, softcap=softcap,
                               hidden=hidden, dropout=dropout)  # fmt: skip
    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
    out = _package(query.device).flash_attn_func(
        q, k, v, dropout_p=dropout, softmax_scale=scale, causal=True,
        window_size=_window(window), softcap=softcap or 0.0,
    )  # fmt: skip
    return out.transpose(0, 1).flatten(2)


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
    """`attention.packed_attention` by flash_attn_varlen_func; its int32 bounds have a leading 0."""
    plain.expect(query, key, cu_seqlens=cu_seqlens, window=window)
    bounds = torch.tensor(cu_seqlens, dtype=torch.int32).to(query.device, non_blocking=True)
    longest = max(end - start for start, end in zip(cu_seqlens, cu_seqlens[1:], strict=False))
    out = _package(query.device).flash_attn_varlen_func(
        query, key, value, bounds, bounds, longest, longest, dropout_p=dropout,
        softmax_scale=scale, causal=True, window_size=_window(window), softcap=softcap or 0.0,
    )  # fmt: skip
    return out.flatten(1)


def _window(window: int | None) -> tuple[int, int]:
    """(keys to the left, keys to the right) besides the query's own; -1 is all."""
    return (-1 if window is None else window - 1, 0)
