"""Owns which sequences run in which step and what stays in memory afterwards: sequences join and
leave between steps, long prompts are read in chunks, and what one has read others reuse.

It makes the same choices on every rank, since it looks at nothing but what it was told, in order;
it knows neither clocks nor ranks nor logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mindspeed_llm.inference.memory import KeyValues, blocks
from mindspeed_llm.inference.reply import Ticket

_ECHO_CHUNK = 64  # tokens a step whose logits are all wanted: each is as wide as the vocabulary
_WORTH_WAITING = 16  # tokens that another one is reading and that need not be read twice


class Share(NamedTuple):
    """What a ticket brings to a step: new ids, and of how many of the last of them logits are
    wanted."""

    ticket: Ticket
    ids: list[int]
    wanted: int


@dataclasses.dataclass
class _Idle:
    """What a finished sequence has left behind."""

    ids: list[int]
    held: KeyValues


class Scheduler:
    """Running, waiting and finished sequences.

    Args:
        memory: makes empty memory for a sequence.
        budget: most positions in memory over all sequences, running and finished; None: as many
            as are running, and one finished one.
        rows: most sequences that run at the same time.
        chunk: most tokens of prompts in a step, so that those who are being answered go on.
    """

    def __init__(
        self,
        memory: Callable[[], KeyValues],
        *,
        budget: int | None = None,
        rows: int | None = None,
        chunk: int = 512,
    ) -> None:
        self._memory, self.budget, self.rows, self.chunk = memory, budget, rows, chunk
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self._idle: list[_Idle] = []  # the last one was used last

    @property
    def used(self) -> int:
        """Positions that are spoken for: by running sequences to their end, by finished ones."""
        return sum(self.reserved(t) for t in self.running) + sum(
            idle.held.capacity for idle in self._idle
        )

    def reserved(self, ticket: Ticket) -> int:
        """Positions of memory that `ticket` may come to need."""
        need = blocks(len(ticket.prompt) + ticket.limit)
        return need if ticket.held is None else max(need, ticket.held.capacity)

    @property
    def last(self) -> list[int]:
        """Ids of the sequence that finished last, as far as memory holds them."""
        return self._idle[-1].ids if self._idle else []

    def join(self, ticket: Ticket) -> None:
        """Queue up."""
        self.waiting.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Finished, or not wanted any more; what it has read stays for others."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        elif ticket in self.running:
            self.running.remove(ticket)
            assert ticket.held is not None
            held, ticket.held = ticket.held, None
            if held.length:
                self._idle.append(_Idle(ticket.ids(0, held.length), held))
            if self.budget is None:
                del self._idle[:-1]

    def forget(self) -> None:
        """Nothing of finished sequences is reused."""
        self._idle.clear()

    def shares(self) -> list[Share]:
        """Admit who can be, and say what runs in the next step; empty where nobody is there."""
        for ticket in list(self.waiting):
            if self.rows is not None and len(self.running) >= self.rows:
                break
            if self._is_being_read(ticket):
                continue  # the others need not wait with it
            if not self._admit(ticket):
                break
        found, left = [], self.chunk
        for ticket in self.running:
            assert ticket.held is not None
            start = ticket.held.length
            if not ticket.is_reading:
                found.append(Share(ticket, ticket.ids(start, ticket.length), 1))
            elif left > 0:
                size = min(left, _ECHO_CHUNK) if ticket.echo else left
                ids = ticket.prompt[start : start + size]
                left -= len(ids)
                ends = start + len(ids) == len(ticket.prompt)
                found.append(Share(ticket, ids, len(ids) if ticket.echo else int(ends)))
        return found

    def _is_being_read(self, ticket: Ticket) -> bool:
        """Whether a running sequence is reading what `ticket` begins with as well."""
        if ticket.echo:
            return False
        coming = max(
            (common(ticket.prompt, t.prompt) for t in self.running if t.is_reading), default=0
        )
        return coming >= _WORTH_WAITING + self._donor(ticket)[1]

    def _donor(self, ticket: Ticket) -> tuple[Ticket | _Idle | None, int]:
        """Who holds most of what `ticket` begins with, and how much. The last id of a prompt is
        always run anew, because its logits are needed."""
        best: tuple[Ticket | _Idle | None, int] = (None, 0)
        if ticket.echo:  # logits of everything are wanted
            return best
        wanted = ticket.prompt[:-1]
        for idle in reversed(self._idle):
            same = common(wanted, idle.ids)
            if same > best[1]:
                best = (idle, same)
        for other in self.running:
            assert other.held is not None
            same = min(common(wanted, other.prompt), other.held.length)
            if same > best[1]:
                best = (other, same)
        return best

    def _admit(self, ticket: Ticket) -> bool:
        """Give `ticket` its memory, with what others have read of its prompt; False: no room."""
        donor, same = self._donor(ticket)
        # Whose conversation this one goes on with hands its memory over; others keep theirs.
        takes = isinstance(donor, _Idle) and same * 2 >= len(donor.ids)
        if not self._make_room(ticket, donor, takes):
            if takes or not isinstance(donor, _Idle) or not self._make_room(ticket, donor, True):
                return False
            takes = True
        if donor is None:
            held = self._memory()
        elif takes:
            assert isinstance(donor, _Idle)
            self._idle = [idle for idle in self._idle if idle is not donor]
            held = donor.held
            held.crop(same)
        else:
            assert donor.held is not None
            held = donor.held.copy(same)
            if isinstance(donor, _Idle):
                self._idle = [idle for idle in self._idle if idle is not donor] + [donor]
        held.limit = min(blocks(len(ticket.prompt) + ticket.limit), held.shape.limit)
        ticket.held, ticket.reply.cached_tokens = held, held.length
        self.waiting.remove(ticket)
        self.running.append(ticket)
        return True

    def _make_room(self, ticket: Ticket, donor: Ticket | _Idle | None, takes: bool) -> bool:
        """Drop what was used longest ago until `ticket` has room; nothing where that is no use."""
        if self.budget is None:
            return True
        need, kept = self.reserved(ticket), donor
        if takes:
            assert isinstance(donor, _Idle)
            need = max(0, need - donor.held.capacity)
        idle = [one for one in self._idle if one is not kept]
        short = self.used + need - self.budget
        if short > sum(one.held.capacity for one in idle):
            return False
        for one in idle:
            if short <= 0:
                break
            short -= one.held.capacity
            self._idle = [other for other in self._idle if other is not one]
        return True


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists begin with alike."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # alike up to low, not up to high
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
