"""The position in the data is a number of samples; any position is reached directly."""

import torch

from mindspeed_llm.training.feed import Batching, Feed


def feed(size, rank=0, ranks=1, batch=4, micro=2):
    rows = [
        {"input_ids": torch.tensor([100 + n, 1, 2]), "labels": torch.tensor([-100, 1, 2])}
        for n in range(size)
    ]
    how = Batching(
        batch_size=batch, micro_batch_size=micro, dp_rank=rank, dp_size=ranks, length=None,
        multiple=1, pad_id=0,
    )  # fmt: skip
    return Feed(rows, lambda position: position % size, how)


def served(batches):
    return [int(token) for batch in batches for token in batch.tokens[:, 0]]


def test_global_batches_follow_each_other_over_epochs():
    source = feed(6)
    assert served(source.micro_batches(0)) == [100, 101, 102, 103]
    assert served(source.micro_batches(4)) == [104, 105, 100, 101]


def test_ranks_share_a_global_batch():
    shares = [served(feed(8, rank, 2).micro_batches(4)) for rank in range(2)]
    assert sorted(sum(shares, [])) == [104, 105, 106, 107]
    assert len(shares[0]) == len(shares[1]) == 2


def test_an_evaluation_ends_with_the_rows():
    source = feed(6)
    assert source.batches == 2
    last = source.micro_batches(4, once=True)
    assert sum(batch.supervised for batch in last) == 2 * 2
    assert sum(batch.supervised for batch in source.micro_batches(4)) == 4 * 2
