"""Owns reading a prepared data set for training: rows, splits, and who gets which row when.

It knows no model and no process group: ranks and sizes are arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.packing import cu_seqlens
from mindspeed_llm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset


class SFTDataset(torch.utils.data.Dataset):
    """Rows of a prepared data set.

    `dataset[i]` is `{"input_ids": int64 [length], "labels": int64 [length]}`; labels are unshifted
    and -100 where not trained. Rows of a packed data set, `packing` is not None, have besides
    `segment_ids` int64 [length], 1 .. k and 0 on padding, and `cu_seqlens` int32, the boundaries
    of the sequences that must not see each other (see `packing.cu_seqlens`).

    Args:
        prefix: `--output-prefix` of preprocess_data.py.
        tokenizer_sha256: `Tokenizer.sha256` of the tokenizer that training uses; None to not check.
        max_length: rows that are longer are left out and counted in `left_out`.
        share: (start, end) fractions of the rows in file order, e.g. of `split_shares`.

    Raises:
        DataError: missing, unfinished or damaged files; another tokenizer; no row left.
    """

    def __init__(self, prefix: str | Path, *, tokenizer_sha256: str | None,
                 max_length: int | None = None,
                 share: tuple[float, float] = (0.0, 1.0)) -> None:  # fmt: skip
        self.files = DatasetFiles(Path(prefix))
        self.manifest = Manifest.read(self.files)
        if tokenizer_sha256 is not None and tokenizer_sha256 != self.manifest.tokenizer_sha256:
            raise DataError(f"data set {prefix} was prepared with another tokenizer (vocabulary "
                            f"hash {self.manifest.tokenizer_sha256[:12]}) than the one in use "
                            f"({tokenizer_sha256[:12]}); its ids mean other words. Prepare it "
                            "again with this tokenizer")  # fmt: skip
        self._ids = _open(self.files, "input_ids")
        self._labels = _open(self.files, "labels")
        self.packing = self.manifest.packing
        self._segments = _open(self.files, "attention_mask") if self.packing is not None else None
        lengths = np.asarray(self._ids.sequence_lengths)
        for key, other in (("labels", self._labels), ("attention_mask", self._segments)):
            if other is not None and not np.array_equal(lengths, other.sequence_lengths):
                raise DataError(f"data set {prefix}: {self.files.index('input_ids')} has "
                                f"{len(lengths)} rows, {self.files.index(key)} "
                                f"{len(other.sequence_lengths)}, or their lengths differ; "
                                "prepare it again")  # fmt: skip
        first, last = (round(edge * len(lengths)) for edge in share)
        rows = np.arange(first, last)
        kept = rows if max_length is None else rows[lengths[rows] <= max_length]
        self.left_out = len(rows) - len(kept)
        if not len(kept) and len(rows):
            raise DataError(f"data set {prefix}: all {len(rows)} rows are longer than --seq-length "
                            f"{max_length} (shortest: {lengths[rows].min()} tokens)")  # fmt: skip
        self._rows = kept
        self.lengths = lengths[kept]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = int(self._rows[index])
        sample = {"input_ids": _tensor(self._ids[row]), "labels": _tensor(self._labels[row])}
        if self.packing is not None and self._segments is not None:
            segments = np.asarray(self._segments[row])
            sample["segment_ids"] = _tensor(segments)
            sample["cu_seqlens"] = torch.from_numpy(cu_seqlens(segments, self.packing.multiple))
        return sample


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values).astype(np.int64))


def _open(files: DatasetFiles, key: str) -> IndexedDataset:
    # Late: preparing data must not import megatron.core.
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    try:
        return IndexedDataset(str(files.stem(key)))
    except (ValueError, AssertionError, OSError) as err:
        raise DataError(f"{files.index(key)}: megatron.core cannot read it ({err}); prepare the "
                        "data set again") from err  # fmt: skip


def split_shares(split: str) -> tuple[tuple[float, float], ...]:
    """`"95,5,0"` -> ((0, .95), (.95, 1), (1, 1)): train, validation, test, in file order.

    Raises:
        ConfigError: not one to three non-negative numbers with a positive sum.
    """
    try:
        weights = [float(part) for part in split.split(",")]
    except ValueError:
        weights = []
    if not 1 <= len(weights) <= 3 or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ConfigError(f"--split {split!r}: expected one to three weights such as 95,5,0")
    edges = np.cumsum([0.0, *weights, *[0.0] * (3 - len(weights))]) / sum(weights)
    return tuple((float(a), float(b)) for a, b in zip(edges[:-1], edges[1:], strict=True))


class GlobalBatchSampler:
    """Endless micro-batches of row numbers for one data-parallel rank.

    The samples form one stream, epoch after epoch, each epoch its own permutation of all rows.
    Global batch n is the same set of rows whatever the micro-batch and data-parallel sizes are,
    and any point of the stream is reached without walking there.

    Args:
        size: rows of the data set.
        global_batch_size, micro_batch_size: samples of one step, and of one forward pass of a rank.
        data_parallel_rank, data_parallel_size: whose samples to yield.
        consumed_samples: samples of all ranks that were trained before (from the checkpoint).
        seed: of the permutations.
        shuffle: False: every epoch in file order.

    Raises:
        ConfigError: an empty data set, or sizes that do not divide the global batch.
    """

    def __init__(self, size: int, *, global_batch_size: int, micro_batch_size: int,
                 data_parallel_rank: int = 0, data_parallel_size: int = 1,
                 consumed_samples: int = 0, seed: int = 1234,
                 shuffle: bool = True) -> None:  # fmt: skip
        if size < 1:
            raise ConfigError("the data set has no rows in this split (--split)")
        together = micro_batch_size * data_parallel_size
        if global_batch_size < 1 or together < 1 or global_batch_size % together:
            raise ConfigError(f"--global-batch-size {global_batch_size} is not a multiple of "
                              f"--micro-batch-size {micro_batch_size} x data-parallel size "
                              f"{data_parallel_size} = {together}")  # fmt: skip
        if not 0 <= data_parallel_rank < data_parallel_size:
            raise ConfigError(f"data-parallel rank {data_parallel_rank} of {data_parallel_size}")
        if consumed_samples < 0:
            raise ConfigError(f"consumed samples {consumed_samples} is negative")
        self.size = size
        self.micro_batches = global_batch_size // together
        self.consumed_samples = consumed_samples
        self._global, self._micro = global_batch_size, micro_batch_size
        self._rank, self._ranks = data_parallel_rank, data_parallel_size
        self._seed, self._shuffle = seed, shuffle
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    @property
    def epoch(self) -> int:
        """Epoch of the next sample, from 0."""
        return self.consumed_samples // self.size

    def __iter__(self) -> Iterator[list[int]]:
        """Micro-batches without end; `consumed_samples` grows when a global batch is complete."""
        while True:
            yield from self.step()

    def step(self) -> list[list[int]]:
        """This rank's micro-batches of the next global batch."""
        start = self.consumed_samples
        rows = [self.row(start + i) for i in range(self._global)]
        self.consumed_samples += self._global
        stride = self._micro * self._ranks
        offset = self._rank * self._micro
        return [rows[at + offset : at + offset + self._micro]
                for at in range(0, self._global, stride)]  # fmt: skip

    def row(self, position: int) -> int:
        """Row number of the sample at `position` of the stream."""
        epoch, within = divmod(position, self.size)
        if not self._shuffle:
            return within
        if epoch != self._epoch:
            # RandomState, not Generator: numpy promises that its stream never changes.
            state = np.random.SeedSequence([self._seed, epoch]).generate_state(8)
            self._order = np.random.RandomState(state).permutation(self.size)
            self._epoch = epoch
        return int(self._order[within])
