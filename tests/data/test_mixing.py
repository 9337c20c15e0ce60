"""Tests of mindspeed_llm.data.mixing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mindspeed_llm.data.mixing import mix
from mindspeed_llm.errors import ConfigError


def source_of(rows: np.ndarray, counts: list[int]) -> np.ndarray:
    return np.searchsorted(np.cumsum(counts), rows, side="right")


@pytest.mark.parametrize("seed", range(20))
def test_each_source_has_its_share_to_within_one_row_everywhere(seed):
    rng = random.Random(seed)
    counts = [rng.randint(50, 400) for _ in range(rng.randint(1, 6))]
    weights = [rng.uniform(0.05, 3) for _ in counts]
    shares = np.asarray(weights) / sum(weights)
    rows = mix(counts, weights, seed, False)
    sources = source_of(rows, counts)
    for number, share in enumerate(shares):
        used = np.cumsum(sources == number)
        assert np.abs(used - share * np.arange(1, len(rows) + 1)).max() <= 1
        assert used[-1] <= counts[number]
    assert len(set(rows.tolist())) == len(rows)  # without repeating no row comes twice


def test_the_mix_ends_with_the_source_that_is_used_up_first():
    counts = [30, 1000]
    rows = mix(counts, [0.3, 0.7], 1, False)
    used = np.bincount(source_of(rows, counts))
    assert used[0] == 30 and abs(used[1] - 70) <= 3


def test_repeating_uses_every_row_and_the_small_source_again_in_another_order():
    counts = [10, 100]
    rows = mix(counts, [0.5, 0.5], 1, True)
    small = rows[rows < 10].tolist()
    assert set(rows.tolist()) == set(range(110)) and len(rows[rows >= 10]) == 100
    passes = [small[at : at + 10] for at in range(0, len(small), 10)]
    assert all(sorted(one) == list(range(10)) for one in passes[:9])
    assert len({tuple(one) for one in passes[:9]}) == 9


def test_the_order_depends_on_the_seed_alone():
    first, again, other = (mix([50, 60], [1, 2], seed, False) for seed in (7, 7, 8))
    assert first.tolist() == again.tolist() != other.tolist()


def test_weights_are_relative():
    assert mix([50, 60], [3, 7], 0, False).tolist() == mix([50, 60], [0.3, 0.7], 0, False).tolist()


def test_a_mix_that_would_never_end_is_refused():
    with pytest.raises(ConfigError, match="repeat 1,010 rows into"):
        mix([10, 1000], [1000, 1], 0, True)
