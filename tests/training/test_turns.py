"""Turns are counted inside each conversation."""

import torch

from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.training.turns import turns_of

N = IGNORE


def test_rows_are_conversations():
    targets = torch.tensor([[N, 5, 6, N, 7, N], [4, N, N, 8, 8, 8], [N, N, N, N, N, N]])
    assert turns_of(targets, None).tolist() == [
        [0, 1, 1, 0, 2, 0],
        [1, 0, 0, 2, 2, 2],
        [0, 0, 0, 0, 0, 0],
    ]


def test_packed_conversations_begin_anew():
    targets = torch.tensor([[N, 5, N, 6, 7, N, N, 8, N, 9, N]])
    bounds = torch.tensor([0, 4, 6, 8, 11], dtype=torch.int32)
    # the second conversation begins with a trained target right behind one of the first
    assert turns_of(targets, bounds).tolist() == [[0, 1, 0, 2, 1, 0, 0, 1, 0, 1, 0]]
