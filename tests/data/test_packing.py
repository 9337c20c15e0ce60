"""Tests of mindspeed_llm.data.packing: exact capacity, tight packs, layout from segment ids."""

from __future__ import annotations

import numpy as np
import pytest

from mindspeed_llm.data.packing import (
    best_fit_decreasing,
    cu_seqlens,
    offsets,
    positions,
    segment_ids,
)


def pack(*lengths, capacity=10, multiple=1):
    return best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity, multiple)


def slow_best_fit_decreasing(lengths, capacity):
    """The definition, in quadratic time; among equal rooms the one that came to it first."""
    bins = []
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], r)):
        fitting = [b for b in bins if b["room"] >= lengths[row]]
        best = min(fitting, key=lambda b: (b["room"], b["since"]), default=None)
        if best is None:
            best = {"room": capacity, "rows": []}
            bins.append(best)
        best["room"] -= lengths[row]
        best["rows"].append(row)
        best["since"] = sum(len(b["rows"]) for b in bins)
    return sorted(sorted(b["rows"]) for b in bins)


def test_a_row_of_exactly_the_capacity_fits_and_full_packs_are_left_alone():
    assert pack(10, 10, 10) == [[0], [1], [2]]
    assert pack(6, 10, 4) == [[0, 2], [1]]


def test_the_tightest_pack_is_chosen():
    assert pack(5, 7, 3) == [[0], [1, 2]]
    assert pack(7, 5, 3, 5) == [[0, 2], [1, 3]]


def test_packs_and_their_rows_keep_the_input_order():
    assert pack(1, 9, 2, 8, 3, 7) == [[0, 1], [2, 3], [4, 5]]
    assert pack(5, 5, 5, 5) == [[0, 1], [2, 3]]


def test_aligned_lengths_are_what_is_packed():
    assert pack(5, 4) == [[0, 1]]
    assert pack(5, 4, capacity=12, multiple=4) == [[0, 1]]
    assert pack(5, 5, capacity=12, multiple=4) == [[0], [1]]


@pytest.mark.parametrize("capacity", [1, 2, 7, 16, 61, 64, 100])
def test_equals_the_definition(capacity):
    draw = np.random.default_rng(capacity)
    for size in (1, 2, 5, 40, 150):
        lengths = draw.integers(1, capacity + 1, size)
        found = best_fit_decreasing(lengths, capacity)
        assert found == slow_best_fit_decreasing(lengths.tolist(), capacity)
        assert sorted(sum(found, [])) == list(range(size))
        assert all(lengths[rows].sum() <= capacity for rows in found)


def test_nothing_to_pack():
    assert best_fit_decreasing(np.zeros(0, np.int64), 8) == []


@pytest.mark.parametrize("lengths", [(11,), (3, 0)])
def test_lengths_that_cannot_be_packed(lengths):
    with pytest.raises(ValueError, match="1 to 10 tokens"):
        pack(*lengths)


def test_a_capacity_off_the_alignment():
    with pytest.raises(ValueError, match="not a multiple of 4"):
        pack(3, multiple=4)


def test_many_rows_leave_little_padding():
    lengths = np.random.default_rng(0).integers(1, 1000, 20_000)
    packs = best_fit_decreasing(lengths, 4096)
    assert lengths.sum() / (len(packs) * 4096) > 0.995


def test_layout_without_alignment():
    lengths = np.array([5, 4])
    ids = segment_ids(lengths, 10, 1)
    assert ids.tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 0] and ids.dtype == np.int32
    boundaries = cu_seqlens(ids, 1)
    assert boundaries.tolist() == [0, 5, 9, 10] and boundaries.dtype == np.int32
    assert positions(boundaries).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]


def test_layout_with_alignment_is_the_drawing_of_the_module():
    lengths = np.array([5, 4, 3])
    assert offsets(lengths, 4).tolist() == [0, 8, 12]
    ids = segment_ids(lengths, 16, 4)
    assert ids.tolist() == [1] * 5 + [0] * 3 + [2] * 4 + [3] * 3 + [0]
    boundaries = cu_seqlens(ids, 4)
    assert boundaries.tolist() == [0, 8, 12, 16]
    assert positions(boundaries).tolist() == [*range(8), *range(4), *range(4)]


@pytest.mark.parametrize(("lengths", "multiple", "expected"), [
    ([8], 1, [0, 8]), ([5], 1, [0, 5, 8]), ([5], 8, [0, 8]), ([3, 1], 4, [0, 4, 8]),
    ([3], 2, [0, 4, 8]), ([1], 1, [0, 1, 8]),
])  # fmt: skip
def test_the_tail_is_a_sequence_of_its_own(lengths, multiple, expected):
    assert cu_seqlens(segment_ids(np.array(lengths), 8, multiple), multiple).tolist() == expected


def test_a_row_of_padding_is_one_sequence():
    assert cu_seqlens(np.zeros(8, np.int32), 1).tolist() == [0, 8]
