"""Owns joining rows into a batch by padding on the right; knows no model and no rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.errors import DataError


def collate(
    rows: Sequence[Mapping[str, torch.Tensor]],
    *,
    pad_id: int,
    seq_length: int | None = None,
    pad_to_multiple_of: int = 1,
) -> dict[str, torch.Tensor]:
    """Pad rows to one length.

    Args:
        rows: `{"input_ids", "labels"}` int64 [length] each, labels unshifted.
        pad_id: id written on padding; no label is ever derived from it.
        seq_length: exact length of the batch (pipeline stages need one); None: the longest row's.
        pad_to_multiple_of: the length is rounded up to a multiple of this.

    Returns:
        `input_ids`, `labels` int64 [batch, length]; `lengths` int64 [batch]. Labels are -100 on
        padding.

    Raises:
        DataError: a row is longer than `seq_length`, or `seq_length` is not such a multiple.
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows], dtype=torch.int64)
    longest = int(lengths.max())
    if seq_length is None:
        width = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    elif longest > seq_length or seq_length % pad_to_multiple_of:
        raise DataError(f"--seq-length {seq_length}: the longest row has {longest} tokens, and "
                        f"lengths must be multiples of {pad_to_multiple_of}")  # fmt: skip
    else:
        width = seq_length
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORE, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : lengths[index]] = row["input_ids"]
        labels[index, : lengths[index]] = row["labels"]
    return {"input_ids": ids, "labels": labels, "lengths": lengths}
