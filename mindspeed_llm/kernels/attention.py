"""Owns causal attention in plain torch: sliding window, soft cap, grouped queries, cached keys,
sequences packed into one row. It knows no layer and no rank.

Shapes, megatron-core's order: query [sq, b, n, d]; key and value [sk, b, g, d] with n a multiple
of g; result [sq, b, n * d]. The queries are the last sq of the sk positions, so sq < sk means that
earlier keys come from a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

BLOCK = 512  # queries whose capped scores exist at a time


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
            scaled_dot_product_attention does the work, with it the scores are written out, a
            block of queries at a time, since no fused kernel of torch has a cap.
        hidden: boolean [sq or 1, sk] or [b or 1, 1, sq or 1, sk], True where a key is hidden. It
            adds to causality and window and never replaces them. A query that sees no key gets 0.
        dropout: probability with which attention weights are dropped.

    Returns:
        [sq, b, n * d] in query's dtype.
    """
    sq, batch, heads, dim = query.shape
    sk, _, groups, _ = key.shape
    assert sq <= sk, f"{sq} queries but only {sk} keys"
    q, k, v = query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
    if window is not None and window >= sk:
        window = None
    if softcap is not None:
        out = _capped(q, k, v, hidden, window=window, scale=scale, softcap=softcap,
                      dropout=dropout)  # fmt: skip
    else:
        plain = hidden is None and window is None and sq == sk
        mask, empty = (None, None) if plain else _mask(sq, sk, window, hidden, query.device)
        out = _fused(q, k, v, mask, causal=plain and sq > 1, scale=scale, dropout=dropout)
        if empty is not None:
            out = out.masked_fill(empty, 0.0)
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
    lengths = [end - start for start, end in zip(cu_seqlens, cu_seqlens[1:], strict=False)]
    assert cu_seqlens[0] == 0 and sum(lengths) == len(query), "cu_seqlens must run from 0 to t"
    # split, not slices: its backward pass joins the parts once, and a slice's fills a whole row.
    parts = zip(*(t.unsqueeze(1).split(lengths) for t in (query, key, value)), strict=True)
    return torch.cat([
        attention(q, k, v, scale=scale, window=window, softcap=softcap, dropout=dropout)
        for q, k, v in parts
    ]).squeeze(1)  # fmt: skip


def _fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    causal: bool,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """[b, n, sq, d] through scaled_dot_product_attention; k, v [b, g, sk, d]."""
    batch, heads, sq, dim = q.shape
    groups = k.shape[1]
    same = mask is None or mask.dim() < 3 or mask.shape[-3] == 1  # one mask for all heads
    if sq == 1 and groups < heads and same:
        # One new token: the queries of a group become the rows of one product; no key is repeated.
        rows = q.reshape(batch, groups, heads // groups, dim)
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, dropout_p=dropout,
                                             scale=scale)  # fmt: skip
        return out.reshape(batch, heads, 1, dim)
    alone = not torch.is_grad_enabled() and dropout == 0  # no second pass that must do the same
    if groups < heads and q.device.type == "cpu" and alone:
        # The CPU's kernel shares keys between queries: the same bits without the copy of a cache.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal,
                                              scale=scale, enable_gqa=True)  # fmt: skip
    if groups < heads:
        k, v = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scale
    )


def _capped(
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
    """[b, n, sq, d] with the scores written out, BLOCK queries at a time; k, v [b, g, sk, d].

    A block looks at the keys up to its last query and no further back than the window. Its scores
    are computed again for the gradient, so memory grows with the length and not with its square.
    """
    sq, sk = q.shape[2], k.shape[2]
    again = torch.is_grad_enabled() and sq > BLOCK
    parts = []
    for start in range(0, sq, BLOCK):
        stop = min(start + BLOCK, sq)
        last = sk - sq + stop
        first = 0 if window is None else max(0, sk - sq + start + 1 - window)
        covered = hidden
        if hidden is not None:
            rows = slice(None) if hidden.shape[-2] == 1 else slice(start, stop)
            covered = hidden[..., rows, first:last]
        inputs = (q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last], covered)
        options = (window, scale, softcap, dropout)
        if again:
            part = checkpoint(_explicit, *inputs, *options, use_reentrant=False,
                              preserve_rng_state=dropout > 0)  # fmt: skip
        else:
            part = _explicit(*inputs, *options)
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _explicit(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor | None,
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
