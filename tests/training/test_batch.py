"""Labels are shifted first; rows are dealt so that every layout sees the same global batch."""

import numpy as np
import pytest
import torch

from mindspeed_llm.data.packing import cu_seqlens, segment_ids
from mindspeed_llm.training.batch import Row, deal, stack

IGNORE = -100


def sample(ids, first_label):
    labels = [IGNORE] * first_label + ids[first_label:]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def test_shift_pairs_each_token_with_its_successor():
    row = Row.shifted(sample([11, 12, 13, 14], 2))
    assert row.tokens.tolist() == [11, 12, 13]
    assert row.targets.tolist() == [IGNORE, 13, 14]


def test_first_token_is_never_a_target_and_last_never_an_input():
    row = Row.shifted(sample([11, 12, 13], 0))
    assert 11 not in row.targets.tolist() and 13 not in row.tokens.tolist()


def test_stack_pads_on_the_right_and_counts():
    rows = [Row.shifted(sample([1, 2, 3, 4, 5], 1)), Row.shifted(sample([6, 7, 8], 2))]
    batch = stack(rows, pad_id=9, length=None, multiple=3)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 9, 9], [6, 7, 9, 9, 9, 9]]
    assert batch.targets[0].tolist() == [2, 3, 4, 5, IGNORE, IGNORE]
    assert batch.targets[1].tolist() == [IGNORE, 8] + [IGNORE] * 4
    assert batch.positions.tolist() == [list(range(6))] * 2
    assert (batch.real_tokens, batch.supervised) == (6, 5)
    assert stack(rows, pad_id=9, length=8, multiple=1).tokens.shape == (2, 8)


@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (2, 1), (1, 4), (2, 2), (8, 1)])
def test_deal_serves_every_row_once(micro, ranks):
    rows = [Row.shifted(sample(list(range(1, 3 + n)), 1)) for n in (4, 1, 7, 2, 2, 6, 3, 5)]
    dealt = [group for rank in range(ranks) for group in deal(rows, micro, rank, ranks)]
    assert all(len(group) == micro for group in dealt)
    served = sorted(len(row) for group in dealt for row in group)
    assert served == sorted(len(row) for row in rows)


def test_deal_puts_like_lengths_together_longest_first():
    rows = [Row.shifted(sample(list(range(1, 3 + n)), 1)) for n in (1, 8, 2, 7)]
    lengths = [[len(row) for row in group] for group in deal(rows, 2, 0, 1)]
    assert lengths == [[9, 8], [3, 2]]


def test_a_remainder_is_filled_without_targets():
    rows = [Row.shifted(sample([1, 2, 3], 1)), Row.shifted(sample([4, 5], 1)),
            Row.shifted(sample([6, 7], 1))]  # fmt: skip
    batches = [stack(group, pad_id=0, length=None, multiple=1)
               for rank in range(2) for group in deal(rows, 2, rank, 2)]  # fmt: skip
    assert [len(b.tokens) for b in batches] == [2, 2]
    assert sum(b.supervised for b in batches) == 4


def packed(*lengths, capacity, first=0):
    """A packed row of conversations of these lengths, every token a label; ids count from 1."""
    segments = segment_ids(np.array(lengths), capacity, 1)
    ids = torch.arange(1 + first, capacity + 1 + first)
    ids[segments == 0] = 0
    return {
        "input_ids": ids,
        "labels": torch.where(ids == 0, IGNORE, ids),
        "segment_ids": torch.from_numpy(segments).long(),
        "cu_seqlens": torch.from_numpy(cu_seqlens(segments, 1)),
    }


def test_the_last_token_of_a_conversation_never_predicts_the_next_ones_first():
    row = Row.shifted(packed(5, 4, capacity=10))
    assert row.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert row.targets.tolist() == [2, 3, 4, 5, IGNORE, 7, 8, 9, IGNORE, IGNORE]
    assert row.cu_seqlens.tolist() == [0, 5, 9, 10]
    assert row.real == (5 - 1) + (4 - 1)  # as many as unpacked
    full = Row.shifted(packed(4, 6, capacity=10))
    assert full.targets.tolist() == [2, 3, 4, IGNORE, 6, 7, 8, 9, 10, IGNORE]


def test_packed_rows_of_a_micro_batch_become_one():
    rows = [
        Row.shifted(packed(5, 4, capacity=10)),
        Row.shifted(packed(3, 7, capacity=10, first=20)),
    ]
    batch = stack(rows, pad_id=99, length=10, multiple=1)
    assert batch.tokens.shape == batch.targets.shape == batch.positions.shape == (1, 20)
    assert batch.tokens[0].tolist() == [*range(1, 10), 0, *range(21, 31)]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 10, 13, 20]
    assert batch.cu_seqlens.dtype == torch.int32
    parts = [range(5), range(4), range(1), range(3), range(7)]
    assert batch.positions[0].tolist() == [i for part in parts for i in part]
    assert batch.targets[0, [4, 8, 9, 12, 19]].tolist() == [IGNORE] * 5
    assert (batch.real_tokens, batch.supervised) == (7 + 8, 7 + 8)
    assert batch.to(torch.device("cpu")).cu_seqlens is batch.cu_seqlens


def test_packed_rows_are_compared_by_the_cost_of_attention():
    lengths = [(5, 5), (10,), (2, 2, 2, 2, 2), (7, 3)]
    rows = [Row.shifted(packed(*part, capacity=10)) for part in lengths]
    (first,), (second,), (third,), (last,) = deal(rows, 1, 0, 1)
    assert [first, second, third, last] == [rows[1], rows[3], rows[0], rows[2]]


def test_a_remainder_of_packed_rows_counts_nothing():
    rows = [Row.shifted(packed(5, 4, capacity=10))] * 3
    batches = [stack(group, pad_id=0, length=10, multiple=1) for group in deal(rows, 2, 0, 1)]
    assert [batch.supervised for batch in batches] == [14, 7]
    assert [batch.real_tokens for batch in batches] == [14, 7]
    assert batches[1].cu_seqlens.tolist() == [0, 5, 9, 10, 15, 19, 20]


def test_context_parallel_ranks_share_a_packed_row():
    """Labels were shifted before: the target of a rank's last token is on another rank."""
    batch = stack([Row.shifted(packed(8, 3, 1, capacity=12))], pad_id=0, length=12, multiple=1)
    first, second = (batch.share(rank, 2) for rank in range(2))
    # 8 tokens in chunks of 2, zigzag; the 4 that are left follow each other.
    assert first.positions.tolist() == [[0, 1, 6, 7, 0, 1]]
    assert second.positions.tolist() == [[2, 3, 4, 5, 2, 0]]
    assert first.tokens.tolist() == [[1, 2, 7, 8, 9, 10]]
    assert first.targets.tolist() == [[2, 3, 8, IGNORE, 10, 11]]
    assert second.targets.tolist() == [[4, 5, 6, 7, IGNORE, IGNORE]]
    assert first.supervised + second.supervised == batch.supervised == 9
    assert [part.real_tokens for part in (first, second)] == [batch.real_tokens, 0]
    assert first.length == second.length == batch.length == 12
    assert first.cu_seqlens is batch.cu_seqlens


def test_context_parallel_ranks_share_every_row():
    rows = [Row(torch.arange(10 * n, 10 * n + 8), torch.arange(8), 8) for n in range(2)]
    batch = stack(rows, pad_id=0, length=8, multiple=1)
    parts = [batch.share(rank, 4) for rank in range(4)]
    assert [part.tokens.tolist() for part in parts] == [
        [[a, b], [10 + a, 10 + b]] for a, b in ((0, 7), (1, 6), (2, 5), (3, 4))
    ]
    assert batch.share(0, 1) is batch
