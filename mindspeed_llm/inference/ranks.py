"""Owns how rank 0 tells the other ranks what to do next; knows nothing of what it is.

Requests travel as JSON: one rank never unpickles what another one sent. The first rank may wait for
a user for hours, so they have a process group of their own that does not time out meanwhile.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = datetime.timedelta(days=30)


class Ranks:
    """All processes of one model replica; rank 0 leads.

    Args:
        source: rank whose logits are complete and that therefore chooses tokens.
    """

    def __init__(self, source: int = 0) -> None:
        self.size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.source = source
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.size > 1 else None

    @property
    def is_leader(self) -> bool:
        """Whether this rank talks to the user."""
        return self.rank == 0

    @property
    def is_source(self) -> bool:
        """Whether this rank chooses tokens."""
        return self.rank == self.source

    def request(self, message: dict[str, Any] | None = None) -> dict[str, Any]:
        """The leader's message, on every rank; the others pass none."""
        assert (message is not None) == self.is_leader
        if self._group is None:
            assert message is not None
            return message
        data = b"" if message is None else json.dumps(message).encode()
        size = torch.tensor([len(data)])
        dist.broadcast(size, src=0, group=self._group)
        body = torch.zeros(int(size), dtype=torch.uint8)
        if message is not None:
            body.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(body, src=0, group=self._group)
        return json.loads(bytes(body.tolist()))

    def share(
        self, values: Sequence[float], *, src: int, dtype: torch.dtype = torch.int64
    ) -> list[Any]:
        """`values` of rank `src`, on every rank; all pass as many."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(list(values), dtype=dtype)
        dist.broadcast(tensor, src=src, group=self._group)
        return tensor.tolist()
