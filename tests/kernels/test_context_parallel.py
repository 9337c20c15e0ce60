"""Shares hold every token once and as many on each rank; attention of the shares is the whole's."""

from __future__ import annotations

import random

import pytest
import torch

from mindspeed_llm.kernels.attention import attention, packed_attention
from mindspeed_llm.kernels.context_parallel import (
    gathered_order,
    local_positions,
    share_attention,
    shares,
)

CPU = torch.device("cpu")
ROWS = [(0, 32), (0, 8, 32), (0, 5, 6, 17, 24), (0, 1, 2, 3, 4, 5, 6, 7, 8), (0, 0, 3, 3, 16)]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("bounds", ROWS)
def test_every_token_is_held_once_and_by_all_as_many(bounds, ranks):
    every = shares(bounds, ranks)
    held = [share.tokens() for share in every]
    assert {len(tokens) for tokens in held} == {bounds[-1] // ranks}
    assert torch.cat(held).sort().values.tolist() == list(range(bounds[-1]))
    begins = torch.tensor(bounds)
    for share, tokens in zip(every, held, strict=True):
        assert tokens.tolist() == sorted(tokens.tolist())
        sequence = torch.bucketize(tokens, begins, right=True) - 1
        assert local_positions(share, CPU).tolist() == (tokens - begins[sequence]).tolist()


def test_the_zigzag_of_one_sequence():
    first, second = shares((0, 16), 2)
    assert first.held == (((0, 4), (12, 16)),)
    assert second.held == (((4, 12),),)


def test_what_is_left_of_sequences_makes_ranks_equal():
    first, second = shares((0, 7, 10), 2)
    assert first.held == (((0, 1), (3, 7)), ()) and second.held == (((1, 3),), ((0, 3),))


def test_work_is_balanced_within_what_is_left():
    """Pairs of query and key, which zigzag makes equal but for 2 R - 1 tokens of a sequence."""
    draw = random.Random(0)
    cuts = sorted(draw.sample(range(1, 4096), 9))
    bounds = (0, *cuts, 4096)
    pairs = [
        sum(sum(range(begin + 1, end + 1)) for ranges in share.held for begin, end in ranges)
        for share in shares(bounds, 4)
    ]
    assert max(pairs) < 1.05 * min(pairs)


def test_a_row_that_ranks_do_not_divide_is_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="a row of 9 tokens for 2 ranks"):
        shares((0, 9), 2)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bounds", ROWS)
def test_shares_attend_like_the_whole(bounds, window, softcap):
    """Outputs and gradients of 4 ranks, joined, are those of the packed row."""
    ranks, total = 4, bounds[-1]
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(total, n, 6, generator=draw, dtype=torch.float64) for n in (4, 2, 2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    answer = torch.randn(total, 24, generator=draw, dtype=torch.float64)
    how = {"scale": 0.7, "window": window, "softcap": softcap}
    whole = packed_attention(*inputs, cu_seqlens=[*dict.fromkeys(bounds)], **how)
    wanted = torch.autograd.grad(whole, inputs, answer)

    query, key, value = (tensor.unsqueeze(1) for tensor in inputs)
    outputs = [
        share_attention(attention, query[share.tokens()], key, value, share=share, **how)
        for share in shares(bounds, ranks)
    ]
    joined = torch.cat(outputs)[gathered_order(bounds, ranks, CPU)].squeeze(1)
    torch.testing.assert_close(joined, whole, rtol=1e-5, atol=1e-6)  # softmax is in fp32
    found = torch.autograd.grad(joined, inputs, answer)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
