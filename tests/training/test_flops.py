"""Operations are those of the matrices, counted by hand for a small model."""

import dataclasses

import torch

from mindspeed_llm.models.registry import read_model
from mindspeed_llm.training.batch import Row, stack
from mindspeed_llm.training.flops import Work, _pairs


def test_pairs_are_causal_and_within_the_window():
    assert _pairs(4, None) == 1 + 2 + 3 + 4
    assert _pairs(6, 3) == 1 + 2 + 3 + 3 + 3 + 3
    assert _pairs(2, 3) == 3


def test_operations_of_a_batch(tiny_hf_model, tmp_path):
    model = read_model(tiny_hf_model("llama", tmp_path / "hf"))
    rows = [
        Row(torch.arange(7), torch.tensor([-100, -100, 3, 4, 5, -100, -100]), real=7),
        Row(torch.arange(3), torch.tensor([-100, 1, 2]), real=3),
        Row(torch.arange(3), torch.tensor([-100] * 3), real=0),  # fills the batch only
    ]
    batch = stack(rows, pad_id=0, length=16, multiple=1)
    hidden, ffn, dim = 64, 96, 24
    a_layer = hidden * dim * (4 + 2 * 2) + 4 * dim * hidden + 3 * hidden * ffn
    matrices = 2 * 4 * a_layer * (7 + 3) + 2 * hidden * 131 * 5
    attention = 4 * 4 * (4 * dim) * (7 * 8 // 2 + 3 * 4 // 2)
    assert Work(model, trains_weights=True).of(batch) == 3 * (matrices + attention)
    assert Work(model, trains_weights=False).of(batch) == 2 * (matrices + attention)
    elsewhere = dataclasses.replace(batch, real_tokens=0)
    assert Work(model, trains_weights=True).of(elsewhere) == 3 * 2 * hidden * 131 * 5
