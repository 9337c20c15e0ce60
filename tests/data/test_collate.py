"""Tests of mindspeed_llm.data.collate."""

from __future__ import annotations

import pytest
import torch

from mindspeed_llm.data.collate import collate
from mindspeed_llm.errors import DataError


def row(*ids):
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor([-100, *ids[1:]])}


def test_rows_are_padded_on_the_right():
    batch = collate([row(5, 6, 7), row(8, 9)], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]  # a real 9 stays a target
    assert batch["lengths"].tolist() == [3, 2]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize(("multiple", "width"), [(1, 3), (2, 4), (3, 3), (8, 8)])
def test_length_is_a_multiple(multiple, width):
    batch = collate([row(5, 6, 7)], pad_id=0, pad_to_multiple_of=multiple)
    assert batch["input_ids"].shape == batch["labels"].shape == (1, width)


def test_a_fixed_length_is_exact():
    assert collate([row(5, 6)], pad_id=0, seq_length=2)["input_ids"].tolist() == [[5, 6]]
    assert collate([row(5, 6)], pad_id=0, seq_length=5)["input_ids"].shape == (1, 5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="--seq-length 2: the longest row has 3 tokens"):
        collate([row(5, 6, 7)], pad_id=0, seq_length=2)
    with pytest.raises(DataError, match="multiples of 4"):
        collate([row(5, 6, 7)], pad_id=0, seq_length=6, pad_to_multiple_of=4)
