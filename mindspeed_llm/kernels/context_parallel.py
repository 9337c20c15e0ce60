"""Owns which tokens of a row each context-parallel rank holds, and attention of these over the keys
of all. It knows no process group: who calls it gathers the keys.

Every sequence of a row is cut into 2 R chunks for R ranks, and rank r takes chunks r and
2 R - 1 - r (the zigzag of Megatron's context parallelism): early tokens see few keys and late ones
many, and so every rank has the same work, whatever the lengths of the sequences. The last tokens of
a sequence that 2 R does not divide are dealt so that all ranks hold as many tokens; nothing has to
be padded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch

Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Share:
    """The tokens of one rank.

    Attributes:
        bounds: where the sequences of the row begin, and its length: (0, ..., t).
        held: for each sequence the ranges [begin, end) that the rank holds, increasing and counted
            from the sequence's beginning; none for some sequences. Its tokens lie in this order.
    """

    bounds: tuple[int, ...]
    held: tuple[Ranges, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, on all ranks together."""
        return [end - begin for begin, end in zip(self.bounds, self.bounds[1:], strict=False)]

    def positions(self) -> torch.Tensor:
        """Place of each token in its sequence, int64 [t / ranks], on the CPU."""
        return _joined([torch.arange(*piece) for ranges in self.held for piece in ranges])

    def tokens(self) -> torch.Tensor:
        """Place of each token in the row, int64 [t / ranks], on the CPU."""
        starts = zip(self.held, self.bounds, strict=False)
        return _joined([
            torch.arange(begin + start, end + start)
            for ranges, start in starts
            for begin, end in ranges
        ])  # fmt: skip


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


@functools.lru_cache(maxsize=64)
def shares(bounds: tuple[int, ...], ranks: int) -> tuple[Share, ...]:
    """The share of each of `ranks` ranks in a row whose sequences begin at `bounds` (which ends
    with the row's length, a multiple of `ranks`)."""
    assert bounds[-1] % ranks == 0, f"a row of {bounds[-1]} tokens for {ranks} ranks"
    held: list[list[list[tuple[int, int]]]] = [[] for _ in range(ranks)]
    ends: list[tuple[int, int]] = []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        chunk = (end - begin) // (2 * ranks)
        for rank, sequences in enumerate(held):
            late = 2 * ranks - 1 - rank
            sequences.append([(rank * chunk, rank * chunk + chunk),
                              (late * chunk, late * chunk + chunk)])  # fmt: skip
        ends.append((2 * ranks * chunk, end - begin))
    _deal(ends, held)
    return tuple(
        Share(bounds, tuple(_merged(ranges) for ranges in sequences)) for sequences in held
    )


def _deal(ends: list[tuple[int, int]], held: list[list[list[tuple[int, int]]]]) -> None:
    """Give each rank its part of what is left of the sequences, in order."""
    quota = sum(end - begin for begin, end in ends) // len(held)
    rank, room = 0, quota
    for sequence, (begin, end) in enumerate(ends):
        while begin < end:
            if room == 0:
                rank, room = rank + 1, quota
            taken = min(room, end - begin)
            held[rank][sequence].append((begin, begin + taken))
            begin, room = begin + taken, room - taken


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Without empty ranges, and adjoining ones as one."""
    merged: list[tuple[int, int]] = []
    for begin, end in ranges:
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        elif begin < end:
            merged.append((begin, end))
    return tuple(merged)


@functools.lru_cache(maxsize=64)
def local_positions(share: Share, device: torch.device) -> torch.Tensor:
    """`Share.positions` on `device`."""
    return share.positions().to(device)


@functools.lru_cache(maxsize=64)
def gathered_order(bounds: tuple[int, ...], ranks: int, device: torch.device) -> torch.Tensor:
    """Where token i of the row stands when the ranks' shares follow each other: int64 [t]."""
    return torch.cat([share.tokens() for share in shares(bounds, ranks)]).argsort().to(device)


def share_attention(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    share: Share,
    window: int | None = None,
    **how: object,
) -> torch.Tensor:
    """Causal attention of the tokens of one share within their sequences.

    Each range of queries is one call of `attend` with the keys from the beginning of its sequence,
    or of its window, up to its own last token.

    Args:
        attend: `kernels.attention.attention`, or a kernel with its meaning: the queries are the
            last ones of the keys.
        query: [t / ranks, b, n, d], in the order of `share`.
        key: [t, b, g, d], in the order of the row, from all ranks.
        value: [t, b, g, d].
        share: what the queries are.
        window: keys a query sees, itself included; None: all before it.
        how: further arguments of `attend`: `scale`, `softcap`, `dropout`.

    Returns:
        [t / ranks, b, n * d] in query's dtype.
    """
    counts = [end - begin for ranges in share.held for begin, end in ranges]
    assert sum(counts) == len(query), f"{len(query)} queries for a share of {sum(counts)}"
    queries = iter(query.split(counts))
    # split, not slices: its backward pass joins the sequences once, and a slice's fills a row.
    sequences = zip(key.split(share.lengths), value.split(share.lengths), share.held, strict=True)
    parts = []
    for keys, values, ranges in sequences:
        for begin, end in ranges:
            first = 0 if window is None else max(0, begin + 1 - window)
            seen = slice(first, end)
            parts.append(attend(next(queries), keys[seen], values[seen], window=window, **how))
    return torch.cat(parts)
