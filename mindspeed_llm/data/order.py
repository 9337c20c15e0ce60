"""Owns which row stands at which position of the endless stream of samples; knows neither files,
rows nor ranks.

Every order is a function of the position alone, so any point of the stream is reached directly and
a run that continues there sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np

from mindspeed_llm.errors import ConfigError

RowAt = Callable[[int], int]
_BLOCK = 4096


class RowOrder:
    """The rows of one data set, epoch after epoch.

    Args:
        size: rows.
        seed: of the permutations: one number, or several that together tell this stream from
            others.
        shuffle: False: every epoch in file order.
        together: epochs that are shuffled as one. 1: each epoch holds every row once, in a
            permutation of its own. More: every row comes `together` times in as many epochs.

    Raises:
        ConfigError: no rows.
    """

    def __init__(self, size: int, *, seed: int | Sequence[int] = 1234, shuffle: bool = True,
                 together: int = 1) -> None:  # fmt: skip
        if size < 1:
            raise ConfigError("the data set has no rows in this split (--split)")
        self.size, self.together = size, together
        self._shuffle = shuffle
        self._seed = [seed] if isinstance(seed, int) else list(seed)
        self._drawn, self._order = -1, np.zeros(0, dtype=np.int64)

    def row(self, position: int) -> int:
        """Row number, from 0, at `position` of the stream."""
        if not self._shuffle:
            return position % self.size
        block, within = divmod(position, self.size * self.together)
        if block != self._drawn:
            # RandomState, not Generator: numpy promises that its stream never changes.
            state = np.random.SeedSequence([*self._seed, block]).generate_state(8)
            order = np.random.RandomState(state).permutation(self.size * self.together)
            self._order, self._drawn = order, block
        return int(self._order[within]) % self.size


class BlendOrder:
    """Which of several streams the next sample comes from, in given proportions.

    After n samples, stream d has given more than n w_d - 1 and less than n w_d + 1 of them, w_d
    being its share of the sum of weights; for every n and any number of streams. Among the streams
    that stay below their upper bound, the next one is that with the least (given + 1) / w_d: the
    quota method (Balinski and Young 1975). Picking the one that lags most does not keep the bound.

    The pattern repeats when each stream has given its weight (in lowest terms), so it is worked out
    as far as it is asked for and at most that far, 2 bytes a sample.

    Args:
        weights: positive integers.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1:
            raise ValueError(f"weights {weights!r}; expected positive integers")
        divisor = math.gcd(*weights)
        self.weights = [weight // divisor for weight in weights]
        self.period = sum(self.weights)
        scale = math.lcm(*self.weights)
        self._urgency = [scale // weight for weight in self.weights]
        self._picks = np.zeros(0, dtype=np.uint16)
        self._given: list[list[int]] = [[0] * len(weights)]  # at the beginning of each block
        self._ready: list[tuple[int, int]] = []  # (urgency of the next sample, stream)
        self._waiting = [(1, index) for index in range(len(weights))]  # (first position, stream)

    def pick(self, position: int) -> tuple[int, int]:
        """(stream, position in that stream) of the sample at `position`."""
        period, within = divmod(position, self.period)
        block = within // _BLOCK
        while len(self._picks) <= within:
            self._extend()
        stream = int(self._picks[within])
        earlier = np.count_nonzero(self._picks[block * _BLOCK : within] == stream)
        return stream, period * self.weights[stream] + self._given[block][stream] + int(earlier)

    def _extend(self) -> None:
        """Work out another stretch, as long as all before it."""
        start = len(self._picks)
        stop = min(max(2 * start, _BLOCK), self.period)
        picks = np.empty(stop - start, dtype=np.uint16)
        given = list(self._given[start // _BLOCK])
        for count in range(start + 1, stop + 1):
            while self._waiting and self._waiting[0][0] <= count:
                _, stream = heapq.heappop(self._waiting)
                urgency = (given[stream] + 1) * self._urgency[stream]
                heapq.heappush(self._ready, (urgency, stream))
            _, stream = heapq.heappop(self._ready)
            picks[count - start - 1] = stream
            given[stream] += 1
            # The next sample of this stream keeps below the bound from this many samples on.
            first = given[stream] * self.period // self.weights[stream] + 1
            heapq.heappush(self._waiting, (first, stream))
            if count % _BLOCK == 0:
                self._given.append(list(given))
        self._picks = np.concatenate([self._picks, picks])


def filled(row_at: RowAt, size: int, multiple: int) -> RowAt:
    """A stream with epochs of `size` samples, each filled up to a multiple with its own samples.

    What fills an epoch is its own beginning, so with a shuffled stream other rows each time.
    """
    whole = -(-size // multiple) * multiple

    def at(position: int) -> int:
        epoch, within = divmod(position, whole)
        return row_at(epoch * size + within % size)

    return at
