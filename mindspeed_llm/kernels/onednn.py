"""Owns causal attention on oneDNN's products, a block of queries at a time, on a CPU whose own
products are slow (`linear.mkl_suffices`). It knows no layer and no rank.

torch's fused kernel multiplies with MKL. Here the scores of a block are written out, for the
gradient once more, so that memory grows with the length and not with its square. In bfloat16
scores and their gradient are float32 products of the same numbers, the others are of bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mindspeed_llm.kernels import attention as plain
from mindspeed_llm.kernels.attention import by_sequence, expect, visible_keys
from mindspeed_llm.kernels.linear import product

BLOCK = 128  # queries; the quickest of 64, 128 and 256
FEW = 2**14  # scores of a head; with no more it is no quicker than torch's kernel


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
    """`attention.attention` of float32 or bfloat16 without dropout; with `hidden`, or few scores,
    it is that very function."""
    if hidden is not None or len(query) * len(key) <= FEW:
        return plain.attention(query, key, value, scale=scale, window=window, softcap=softcap,
                               hidden=hidden, dropout=dropout)  # fmt: skip
    expect(query, key, window=window, dropout=dropout)
    return _Attention.apply(query, key, value, scale, window, softcap).flatten(2)


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
    """`attention.packed_attention` of float32 or bfloat16 without dropout."""
    expect(query, key, cu_seqlens=cu_seqlens, window=window, dropout=dropout)
    how = {"scale": scale, "window": window, "softcap": softcap}
    return by_sequence(attention, query, key, value, cu_seqlens, **how)


class _Attention(torch.autograd.Function):
    """[sq, b, n, d] of queries [sq, b, n, d], keys and values [sk, b, g, d]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.how = scale, window, softcap
        q, k, v = map(_by_head, (query, key, value))
        exact_k = k.float()
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for rows, keys in _blocks(q, k, window):
            weights, _ = _weights(q[rows], exact_k[keys], scale, window, softcap)
            out[rows] = product(weights.to(v.dtype), v[keys].t()).view(q[rows].shape)
        return out.permute(2, 0, 1, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale, window, softcap = ctx.how
        q, k, v = map(_by_head, ctx.saved_tensors)
        exact_k, exact_v = k.float(), v.float()
        above = grad.permute(1, 2, 0, 3)
        for_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        for_k, for_v = torch.zeros_like(exact_k), torch.zeros_like(exact_v)
        for rows, keys in _blocks(q, k, window):
            queries, mine = q[rows].contiguous(), _flat(above[rows])
            weights, slope = _weights(queries, exact_k[keys], scale, window, softcap)
            for_v[keys] += product(weights.to(mine.dtype).t(), mine.t())
            scores = product(mine.float() * scale, exact_v[keys])
            scores = torch._softmax_backward_data(scores, weights, -1, torch.float32)
            if slope is not None:
                scores *= slope
            scores = scores.to(queries.dtype)
            for_q[rows] = product(scores, k[keys].t()).view(queries.shape)
            for_k[keys] += product(scores.t(), _flat(queries).t())
        return (
            for_q.permute(2, 0, 1, 3),
            *(one.to(k.dtype).permute(2, 0, 1, 3) for one in (for_k, for_v)),
            None, None, None,
        )  # fmt: skip


_Index = tuple[int, int | slice, slice]


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """[s, b, n, d] -> [b, n, s, d], a head's rows one behind the other: others are slow."""
    x = x.permute(1, 2, 0, 3)
    return x if x.stride()[2:] == (x.shape[3], 1) else x.contiguous()


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _blocks(
    q: torch.Tensor, k: torch.Tensor, window: int | None
) -> Iterator[tuple[_Index, _Index]]:
    """Where the queries of a block and group lie in [b, n, sq, d], and in [b, g, sk, d] the keys
    that one of them sees."""
    (batch, heads, sq, _), (_, groups, sk, _) = q.shape, k.shape
    each = heads // groups
    for start in range(0, sq, BLOCK):
        stop = min(start + BLOCK, sq)
        first = 0 if window is None else max(0, sk - sq + start + 1 - window)
        for row in range(batch):
            for group in range(groups):
                yield (
                    (row, slice(group * each, (group + 1) * each), slice(start, stop)),
                    (row, group, slice(first, sk - sq + stop)),
                )


def _weights(
    queries: torch.Tensor, keys: torch.Tensor, scale: float, window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Softmax of the scores of queries [heads, r, d] over float32 keys [k, d], the last r of which
    are their own, [heads * r, k], and the slope of the cap; both float32."""
    scores = product(_flat(queries).float() * scale, keys)
    slope = None
    if softcap is not None:
        scores.div_(softcap).tanh_()
        slope = 1.0 - scores.square()
        scores.mul_(softcap)
    count, width = queries.shape[1], len(keys)
    reach = count if window is None else width  # no query misses a key before its own
    hidden = _hidden(count, reach, window)
    scores.view(-1, count, width)[:, :, width - reach :].masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, -1, out=scores), slope


@functools.lru_cache(maxsize=16)
def _hidden(queries: int, keys: int, window: int | None) -> torch.Tensor:
    """[queries, keys], True where a key is hidden."""
    with torch.inference_mode(False):
        seen = visible_keys(queries, keys, window, torch.device("cpu"))
        return torch.zeros(1, keys, dtype=torch.bool) if seen is None else ~seen
