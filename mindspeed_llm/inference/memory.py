"""Owns the keys and values of one sequence in all layers of a pipeline stage: they grow by blocks,
can be cut back, and layers with a window drop what none of their queries will see again. It knows
no model and no token.

A sequence has memory of its own, so that sequences of any lengths join and leave a step without
being moved. Layout: [layers, 2, g, positions, d], keys before values, keys already turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

BLOCK = 256  # positions by which memory grows
_BACK = 512  # positions by which a layer with a window can be cut back


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the memory of every sequence of a stage looks like.

    Attributes:
        windows: of each layer, the keys a query sees, itself included; None: all of them.
        groups: key/value heads of this rank.
        head_dim: their size.
        limit: longest sequence in positions.
    """

    windows: tuple[int | None, ...]
    groups: int
    head_dim: int
    limit: int
    dtype: torch.dtype
    device: torch.device


class _Part:
    """Layers with one window; `base` is the position of their first entry."""

    def __init__(self, shape: Shape, window: int | None, layers: int) -> None:
        self.shape, self.window, self.base = shape, window, 0
        self.store = self._made(layers, 0)

    def _made(self, layers: int, size: int) -> torch.Tensor:
        shape = self.shape
        return torch.empty(layers, 2, shape.groups, size, shape.head_dim, dtype=shape.dtype,
                           device=shape.device)  # fmt: skip

    def room(self, had: int, end: int, limit: int) -> None:
        """Make positions up to `end` writable, growing to `limit` at most where that does; those
        below `had` are kept as far as needed."""
        size = self.store.shape[3]
        if end - self.base <= size:
            return
        first = self.base
        if self.window is not None:
            first = max(first, had - self.window - _BACK)
        length = had - first
        wanted = end - first
        if wanted > size:
            blocks = -(-max(wanted, size * 3 // 2) // BLOCK)
            grown = min(blocks * BLOCK, max(limit, wanted))
            if self.window is not None:  # what it can hold without ever growing again
                grown = min(grown, max(wanted, self.window + _BACK + BLOCK))
            store = self._made(self.store.shape[0], grown)
        else:
            store = torch.empty_like(self.store)
        store[:, :, :, :length] = self.store[:, :, :, first - self.base : had - self.base]
        self.store, self.base = store, first

    def can_continue(self, length: int) -> bool:
        """Whether a query behind the first `length` positions finds every key it sees."""
        return self.base == 0 or length + 1 - (self.window or 0) >= self.base


class KeyValues:
    """Keys and values of one sequence.

    Attributes:
        length: positions that are written.
        limit: positions it is meant to hold at most; memory grows no further than that.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape, self.length, self.limit = shape, 0, shape.limit
        counts: dict[int | None, int] = {}
        self._place: list[tuple[int | None, int]] = []  # of each layer: its part, and where there
        for window in shape.windows:
            self._place.append((window, counts.get(window, 0)))
            counts[window] = counts.get(window, 0) + 1
        self._parts = {window: _Part(shape, window, count) for window, count in counts.items()}

    @property
    def capacity(self) -> int:
        """Positions there is memory for, in the layers that have most."""
        return max(part.store.shape[3] for part in self._parts.values())

    def crop(self, length: int) -> int:
        """Keep at most the first `length` positions; returns how many are left, which is 0 where a
        window has dropped what the next position would see."""
        length = min(length, self.length)
        if not all(part.can_continue(length) for part in self._parts.values()):
            length = 0
        if length == 0:
            for part in self._parts.values():
                part.base = 0
        self.length = length
        return length

    def copy(self, length: int) -> KeyValues:
        """Memory of its own with the first `length` positions; empty where `crop` would be."""
        other = KeyValues(self.shape)
        length = min(length, self.length)
        if not all(part.can_continue(length) for part in self._parts.values()):
            return other
        for window, part in self._parts.items():
            twin = other._parts[window]
            first = part.base
            if window is not None:
                first = max(first, length - window - _BACK)
            twin.base = first
            twin.room(first, max(length, first), length)
            twin.store[:, :, :, : length - first] = part.store[
                :, :, :, first - part.base : length - part.base
            ]
        other.length = length
        return other

    def open(self, count: int) -> Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Room for `count` more positions, for each layer: where to write keys and values
        [2, g, count, d], then all keys and all values a query of the first new position or a
        later one can see, [1, g, n, d] each, the new ones last. `length` moves on.

        Raises:
            ValueError: the sequence would be longer than its limit.
        """
        start, end = self.length, self.length + count
        if end > self.shape.limit:
            raise ValueError(f"{end} positions do not fit a KV cache of {self.shape.limit}")
        views = {}
        for window, part in self._parts.items():
            part.room(start, end, self.limit)
            first = part.base if window is None else max(part.base, start + 1 - window)
            fresh = part.store[:, :, :, start - part.base : end - part.base].unbind(0)
            seen = part.store[:, :, None, :, first - part.base : end - part.base]
            views[window] = list(
                zip(fresh, seen[:, 0].unbind(0), seen[:, 1].unbind(0), strict=True)
            )
        self.length = end
        return [views[window][at] for window, at in self._place]


def blocks(positions: int) -> int:
    """`positions`, rounded up to whole blocks."""
    return -(-positions // BLOCK) * BLOCK
