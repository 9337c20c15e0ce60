"""Owns reading a prepared data set for training: rows and splits. Knows no model and no order."""

from __future__ import annotations

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
