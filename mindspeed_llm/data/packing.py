"""Owns which rows share a packed row, and how a packed row is laid out; knows neither files nor
models. Boundaries come from segment ids, never from an end-of-sequence token.

Three conversations of 5, 4 and 3 tokens in rows of 16, segments aligned to multiples of 4 (`.` is
padding, labelled -100):

    token        a0 a1 a2 a3 a4  .  .  . b0 b1 b2 b3 c0 c1 c2  .
    segment id    1  1  1  1  1  0  0  0  2  2  2  2  3  3  3  0
    position      0  1  2  3  4  5  6  7  0  1  2  3  0  1  2  3
    cu_seqlens    0                       8          12          16

Padding behind a segment up to the alignment belongs to its sequence, where causal attention cannot
look at it. What is left at the end of the row is a sequence of its own: 5 and 4 tokens in a row of
10, without alignment, have segment ids 1111122220 and cu_seqlens 0 5 9 10.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a data set was packed.

    Args:
        capacity: tokens of every row, padding included.
        multiple: segments begin at multiples of this.
        rows: packed rows.
        segments: conversations in all of them.
        efficiency: share of the rows' tokens that is not padding.
    """

    capacity: int
    multiple: int
    rows: int
    segments: int
    efficiency: float

    def __str__(self) -> str:
        return (f"packed {self.segments:,} conversations into {self.rows:,} rows of "
                f"{self.capacity} tokens: {self.segments / self.rows:.1f} a row, "
                f"{self.efficiency:.2%} of the tokens are not padding")  # fmt: skip


def aligned(lengths: np.ndarray, multiple: int) -> np.ndarray:
    """`lengths` rounded up to multiples of `multiple`, int64."""
    return -(-lengths.astype(np.int64) // multiple) * multiple


def best_fit_decreasing(lengths: np.ndarray, capacity: int, multiple: int = 1) -> list[list[int]]:
    """Divide rows among as few packs as this heuristic finds.

    Rows are placed from the longest to the shortest, each into the pack whose remaining room is
    the smallest that takes it, else into a new one (best-fit decreasing: Johnson 1973, at most
    11/9 of the optimum). Time O(n log n): a row is placed in O(log capacity). Rows of equal length
    are placed in input order, so the result depends on `lengths` only.

    Args:
        lengths: tokens of each row, integer [n].
        capacity: tokens of a pack; a row of exactly this length fits.
        multiple: rows take their length rounded up to a multiple of this.

    Returns:
        Row numbers of each pack, ascending; packs in the order of their first rows. Each row is in
        exactly one pack.

    Raises:
        ValueError: `capacity` is not a multiple of `multiple`, or a row has no token or too many.
    """
    if capacity % multiple:
        raise ValueError(f"capacity {capacity} is not a multiple of {multiple}")
    weights = aligned(lengths, multiple)
    if len(weights) and not 0 < weights.min() <= weights.max() <= capacity:
        raise ValueError(f"rows have 1 to {capacity} tokens, not {lengths.min()} to "
                         f"{lengths.max()}")  # fmt: skip
    packs: list[list[int]] = []
    rooms = _Rooms(capacity)
    for row in np.argsort(-weights, kind="stable").tolist():
        weight = int(weights[row])
        room, pack = rooms.take(weight) or (capacity, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(row)
        rooms.put(room - weight, pack)
    for pack in packs:
        pack.sort()
    return sorted(packs)


class _Rooms:
    """Packs by remaining room; finds the smallest room of at least some size.

    A binary tree over the sizes 0 .. capacity, node i above 2i and 2i + 1, says whether any pack
    lies below it.
    """

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << capacity.bit_length()  # more than capacity
        self._filled = bytearray(2 * self._leaves)
        self._packs: dict[int, deque[int]] = {}

    def put(self, room: int, pack: int) -> None:
        """Remember `pack` unless it is full."""
        if room == 0:
            return
        self._packs.setdefault(room, deque()).append(pack)
        node = self._leaves + room
        while node and not self._filled[node]:
            self._filled[node] = 1
            node //= 2

    def take(self, least: int) -> tuple[int, int] | None:
        """Remove the tightest pack with room for `least`: (its room, the pack), or None."""
        node = self._leaves + least
        while not self._filled[node]:
            while node & 1:  # a right child: all of its parent's sizes are tried or too small
                node //= 2
            if not node:
                return None
            node += 1
        while node < self._leaves:
            node = 2 * node if self._filled[2 * node] else 2 * node + 1
        room = node - self._leaves
        waiting = self._packs[room]
        pack = waiting.popleft()
        if not waiting:
            self._clear(node)
        return room, pack

    def _clear(self, node: int) -> None:
        self._filled[node] = 0
        while node > 1 and not self._filled[node ^ 1]:
            node //= 2
            self._filled[node] = 0


def offsets(lengths: np.ndarray, multiple: int) -> np.ndarray:
    """Where each segment of a pack begins, int64 [k]."""
    ends = np.cumsum(aligned(lengths, multiple))
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]])


def segment_ids(lengths: np.ndarray, capacity: int, multiple: int) -> np.ndarray:
    """Segment ids 1 .. k of a packed row, 0 on padding; int32 [capacity]."""
    ids = np.zeros(capacity, dtype=np.int32)
    for index, (start, length) in enumerate(zip(offsets(lengths, multiple), lengths, strict=True)):
        ids[start : start + length] = index + 1
    return ids


def cu_seqlens(ids: np.ndarray, multiple: int) -> np.ndarray:
    """Boundaries of the sequences of a packed row, int32, from 0 to its length.

    Args:
        ids: segment ids [length], 1 .. k in order, 0 on padding.
        multiple: the alignment it was packed with.
    """
    begins = np.flatnonzero((ids != 0) & (ids != np.concatenate([[0], ids[:-1]])))
    used = np.flatnonzero(ids)
    end = -(-(int(used[-1]) + 1) // multiple) * multiple if len(used) else 0
    tail = [end, len(ids)] if end < len(ids) else [len(ids)]
    return np.concatenate([begins, tail]).astype(np.int32)


def positions(boundaries: np.ndarray) -> np.ndarray:
    """Positions within each sequence, int64, from `cu_seqlens`."""
    lengths = np.diff(boundaries)
    return np.arange(int(boundaries[-1])) - np.repeat(boundaries[:-1].astype(np.int64), lengths)
