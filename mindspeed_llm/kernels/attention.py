"""Owns causal attention in plain torch: sliding window, soft cap, grouped queries, cached keys,
sequences packed into one row. It knows no layer and no rank.

Shapes, megatron-core's order: query [sq, b, n, d]; key and value [sk, b, g, d] with n a multiple
of g; result [sq, b, n * d]. The queries are the last sq of the sk positions, so sq < sk means that
earlier keys come from a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Queries of a block, where attention is cut into blocks: small ones come nearer to the keys that
# are seen, large ones are fewer calls. 128 is the quickest of 64 to 512 on a CPU.
BLOCK, CPU_BLOCK = 512, 128


def visible_keys(
    queries: int, keys: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """Boolean [sq, sk], True where the query may look; None where it may look everywhere.

    Query i stands at position keys - queries + i and sees itself and what is before it, at most
    `window` keys, itself included (transformers' meaning of `sliding_window`).
    """
    if queries == 1 and (window is None or window >= keys):
        return None
    at = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    seen = key <= at
    return seen if window is None else seen & (key > at - window)


def expect(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    window: int | None,
    cu_seqlens: Sequence[int] | None = None,
    **lacking: float | None,
) -> None:
    """Assert what every kernel of attention asks of its arguments: see `attention`, and with
    `cu_seqlens` `packed_attention`. `lacking` are options that the caller's kernel does not have;
    `table` chooses it only where they are not wanted."""
    heads, groups = query.shape[-2], key.shape[-2]
    assert heads % groups == 0, f"{heads} heads for {groups} query groups"
    assert window is None or window > 0, f"a window of {window} keys"
    for name, value in lacking.items():
        assert not value, f"this kernel has no {name}, and {value} is asked for"
    if cu_seqlens is None:
        assert len(query) <= len(key), f"{len(query)} queries but only {len(key)} keys"
        return
    runs = cu_seqlens[0] == 0 and cu_seqlens[-1] == len(query) == len(key)
    assert runs and list(cu_seqlens) == sorted(cu_seqlens), "cu_seqlens must run from 0 to t"


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
    """Causal attention; scores are scaled, then capped to softcap * tanh(score / softcap).

    Args:
        query: [sq, b, n, d], floating.
        key: [sk, b, g, d], same dtype.
        value: [sk, b, g, d], same dtype.
        scale: factor of the scores, e.g. d ** -0.5.
        window: keys a query sees, itself included; None: all before it.
        softcap: cap of the scaled scores (Gemma 2), or None. Without it torch's
            scaled_dot_product_attention does the work, with it the scores are written out, since
            no fused kernel of torch has a cap.
        hidden: boolean [sq or 1, sk] or [b or 1, 1, sq or 1, sk], True where a key is hidden. It
            adds to causality and window and never replaces them. A query that sees no key gets 0.
        dropout: probability with which attention weights are dropped.

    With a window or a soft cap it goes a block of queries at a time, each with the keys up to its
    last query and no further back than the window: fused kernels skip nothing of a mask.

    Returns:
        [sq, b, n * d] in query's dtype.
    """
    expect(query, key, window=window)
    sq, batch, heads, dim = query.shape
    sk = len(key)
    q, k, v = query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
    if window is not None and window >= sk:
        window = None
    if softcap is None and window is None:
        out = _fused(q, k, v, hidden, window=None, scale=scale, dropout=dropout)
    else:
        how = {"window": window, "scale": scale, "dropout": dropout}
        parts = _blocks(q, k, v, hidden, window)
        if softcap is None:
            done = [_fused(*part, **how) for part in parts]
        else:
            done = _capped(parts, softcap=softcap, **how)
        out = done[0] if len(done) == 1 else torch.cat(done, dim=2)
    return out.permute(2, 0, 1, 3).reshape(sq, batch, heads * dim)


def _mask(
    sq: int, sk: int, window: int | None, hidden: torch.Tensor | None, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(what is seen, the rows that see nothing). Such a row looks everywhere, so that numbers and
    gradients stay finite, and is zeroed by who asked."""
    mask = visible_keys(sq, sk, window, device)
    if hidden is None:
        return mask, None
    mask = ~hidden if mask is None else mask & ~hidden
    empty = ~mask.any(-1, keepdim=True)
    return mask | empty, empty


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
    """`attention` within each of the sequences that lie one behind the other in a packed row.

    No sequence sees another, and window and soft cap hold inside each. Scores are computed within
    sequences only, so the cost is the sum of the squares of their lengths.

    Args:
        query: [t, n, d], floating.
        key: [t, g, d], same dtype.
        value: [t, g, d], same dtype.
        cu_seqlens: where the sequences begin, and t: [0, ..., t], increasing.
        scale: see `attention`, as `window`, `softcap` and `dropout`.

    Returns:
        [t, n * d] in query's dtype.
    """
    expect(query, key, cu_seqlens=cu_seqlens, window=window)
    how = {"scale": scale, "window": window, "softcap": softcap, "dropout": dropout}
    return by_sequence(attention, query, key, value, cu_seqlens, **how)


def by_sequence(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: Sequence[int],
    **how: Any,
) -> torch.Tensor:
    """`packed_attention` by a kernel of rows, one sequence after the other."""
    lengths = [end - start for start, end in zip(cu_seqlens, cu_seqlens[1:], strict=False)]
    # split, not slices: its backward pass joins the parts once, and a slice's fills a whole row.
    parts = zip(*(t.unsqueeze(1).split(lengths) for t in (query, key, value)), strict=True)
    return torch.cat([attend(*part, **how) for part in parts]).squeeze(1)


_Block = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


class _Overlapping(torch.autograd.Function):
    """Views of the ranges `spans` of [b, g, s, d]. Their gradients are added where they belong; the
    backward pass of a slice would fill a whole [b, g, s, d] for each."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, spans: Sequence[slice]) -> tuple[torch.Tensor, ...]:
        ctx.spans, ctx.shape = spans, x.shape
        return tuple(x[:, :, span] for span in spans)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = gradients[0].new_zeros(ctx.shape)
        for span, gradient in zip(ctx.spans, gradients, strict=True):
            whole[:, :, span] += gradient
        return whole, None


def _blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor | None,
    window: int | None,
) -> list[_Block]:
    """[b, n, sq, d] and [b, g, sk, d] twice, cut into blocks of queries with the keys, values and
    `hidden` that they may see."""
    sq, sk = q.shape[2], k.shape[2]
    size = CPU_BLOCK if q.device.type == "cpu" else BLOCK
    starts = range(0, sq, size)
    rows = [slice(start, min(start + size, sq)) for start in starts]
    back = sk if window is None else window - 1
    spans = [slice(max(0, sk - sq + part.start - back), sk - sq + part.stop) for part in rows]
    covered: list[torch.Tensor | None] = [None] * len(rows)
    if hidden is not None:
        each = [slice(None)] * len(rows) if hidden.shape[-2] == 1 else rows
        covered = [hidden[..., part, span] for part, span in zip(each, spans, strict=True)]
    parts = (q.split(size, dim=2), *(_Overlapping.apply(t, spans) for t in (k, v)), covered)
    return list(zip(*parts, strict=True))


def _fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor | None,
    *,
    window: int | None,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """[b, n, sq, d] through scaled_dot_product_attention; k, v [b, g, sk, d]."""
    (batch, heads, sq, dim), (_, groups, sk, _) = q.shape, k.shape
    repeated, empty, mask = heads // groups, None, None
    causal = hidden is None and window is None and 1 < sq == sk
    same = hidden is None or hidden.dim() < 3 or hidden.shape[-3] == 1  # one mask for all heads
    # Few queries: those of a group become the rows of one product, and no key is repeated.
    joined = repeated > 1 and sq <= CPU_BLOCK and same and not causal
    if hidden is None and window is not None:
        mask = _window_bias(sq, sk, window, repeated if joined else 1, q.dtype, q.device)
    elif not causal:
        mask, empty = _mask(sq, sk, window, hidden, q.device)
        if joined and mask is not None and mask.shape[-2] > 1:
            mask = torch.cat([mask] * repeated, dim=-2)
    how: dict[str, Any] = {"is_causal": causal, "dropout_p": dropout, "scale": scale}
    shared = q.device.type == "cpu" and not torch.is_grad_enabled() and dropout == 0
    if joined:
        q = q.reshape(batch, groups, repeated * sq, dim)
    elif repeated > 1 and shared:  # and no second pass, with gradients, that must do the same
        how["enable_gqa"] = True  # the CPU's kernel: the same bits without the copy of a cache
    elif repeated > 1:
        k, v = (t.repeat_interleave(repeated, dim=1) for t in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **how)
    out = out.reshape(batch, heads, sq, dim)
    return out if empty is None else out.masked_fill(empty, 0.0)


@functools.lru_cache(maxsize=16)
def _window_bias(
    sq: int, sk: int, window: int, repeated: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """[repeated * sq, sk], added to scores: `visible_keys` for `repeated` heads, one below the
    other. All blocks and layers share it, also in what autograd keeps for them."""
    with torch.inference_mode(False):
        seen = visible_keys(sq, sk, window, device)
        if seen is None:
            return None
        bias = torch.zeros(sq, sk, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
        return bias.repeat(repeated, 1)


def _capped(parts: list[_Block], **how: Any) -> list[torch.Tensor]:
    """[b, n, sq, d] of each block with its scores written out. They are computed again for the
    gradient, so memory grows with the length and not with its square."""
    if len(parts) == 1 or not torch.is_grad_enabled():
        return [_explicit(*part, **how) for part in parts]
    return [
        checkpoint(_explicit, *part, use_reentrant=False,
                   preserve_rng_state=how["dropout"] > 0, **how)
        for part in parts
    ]  # fmt: skip


def _explicit(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor | None,
    *,
    window: int | None,
    scale: float,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    """[b, n, sq, d] with the scores written out, softmax in float32; k, v [b, g, sk, d]."""
    batch, heads, sq, dim = q.shape
    groups, sk = k.shape[1], k.shape[2]
    mask, empty = _mask(sq, sk, window, hidden, q.device)
    rows = q.reshape(batch, groups, heads // groups * sq, dim)
    scores = torch.matmul(rows, k.transpose(-1, -2)).view(batch, heads, sq, sk)
    scores = torch.tanh(scores.float() * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
    weights = weights.view(batch, groups, heads // groups * sq, sk)
    out = torch.matmul(weights, v).view(batch, heads, sq, dim)
    return out if empty is None else out.masked_fill(empty, 0.0)
