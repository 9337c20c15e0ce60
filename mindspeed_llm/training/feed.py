"""Owns the way from a prepared data set to the micro-batches of an iteration; the position in the
data is a number of consumed samples, nothing else. Knows neither models nor files' formats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from mindspeed_llm.training.batch import MicroBatch, Row, deal, stack


class Samples(Protocol):
    """What is asked of a data set: rows with `input_ids` and unshifted `labels`, int64 [length];
    of packed rows their sequences too, as `SFTDataset` gives them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, torch.Tensor]: ...


@dataclasses.dataclass(frozen=True)
class Batching:
    """How rows become micro-batches on this rank.

    `length` is the padded length of all, or None for the longest of each micro-batch, rounded up
    to a multiple of `multiple`; `pad_id` is any token of the vocabulary. Of `cp_size`
    context-parallel ranks each has its share of the tokens of every micro-batch.

    An interleaved pipeline wants micro-batches in multiples of `rounds`, and with `even` all of a
    global batch on this rank are as long as the longest.
    """

    batch_size: int
    micro_batch_size: int
    dp_rank: int
    dp_size: int
    length: int | None
    multiple: int
    pad_id: int
    cp_rank: int = 0
    cp_size: int = 1
    rounds: int = 1
    even: bool = False


class Feed:
    """Micro-batches of this rank, global batch by global batch.

    Args:
        samples: the rows of one split.
        row_at: position in the stream of samples -> row number; the same on every rank.
        batching: see there.
    """

    def __init__(self, samples: Samples, row_at: Callable[[int], int], batching: Batching) -> None:
        self._samples, self._row_at, self._batching = samples, row_at, batching

    @property
    def batches(self) -> int:
        """Global batches that hold every row once; the last may be smaller."""
        return -(-len(self._samples) // self._batching.batch_size)

    def micro_batches(self, consumed: int, *, once: bool = False) -> list[MicroBatch]:
        """This rank's share of the global batch that follows `consumed` samples.

        With `once` the last batch ends with the rows, instead of going on into the next epoch.
        """
        how = self._batching
        end = consumed + how.batch_size
        end = min(end, len(self._samples)) if once else end
        numbers = [self._row_at(position) for position in range(consumed, end)]
        rows = [Row.shifted(self._samples[number]) for number in numbers]
        groups = deal(rows, how.micro_batch_size, how.dp_rank, how.dp_size, how.rounds)
        length = how.length
        if how.even and length is None:
            length = -(-max(len(row) for group in groups for row in group) // how.multiple)
            length *= how.multiple
        whole = [
            stack(group, pad_id=how.pad_id, length=length, multiple=how.multiple)
            for group in groups
        ]
        return [batch.share(how.cp_rank, how.cp_size) for batch in whole]
