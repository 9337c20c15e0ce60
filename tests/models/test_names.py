"""models.names: layouts of merged tensors by hand, and both directions bit for bit."""

import dataclasses

import pytest
import torch

from mindspeed_llm.config.model import ModelConfig, RopeConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.names import NameRule, expand, hf_shapes, spans, to_hf, to_mcore

MODEL = ModelConfig(
    family="test", num_layers=2, hidden_size=3, ffn_hidden_size=5, num_attention_heads=4,
    num_query_groups=2, head_dim=2, vocab_size=11, max_position_embeddings=8, norm_epsilon=1e-6,
    activation="silu", tie_word_embeddings=True, rope=RopeConfig(theta=1e4),
)  # fmt: skip
QKV = NameRule(mcore="qkv", hf=("q", "k", "v"), op="qkv")
FUSED = NameRule(mcore="qkv", hf=("qkv",), op="fused_qkv")
GATE_UP = NameRule(mcore="fc1", hf=("gate", "up"), op="gate_up")
COPY = NameRule(mcore="a", hf=("b",))


def marked(heads, mark):
    """One row per head and dimension, filled with mark + head."""
    rows = [torch.full((MODEL.head_dim, 3), mark + head) for head in range(heads)]
    return torch.cat(rows)


def test_qkv_rows_go_by_query_group():
    merged = to_mcore(QKV, MODEL, [marked(4, 100.0), marked(2, 200.0), marked(2, 300.0)])
    assert merged.shape == (16, 3)
    assert merged[::2, 0].tolist() == [100, 101, 200, 300, 102, 103, 201, 301]


def test_fused_rows_are_q_then_k_then_v():
    fused = torch.cat([marked(4, 100.0), marked(2, 200.0), marked(2, 300.0)])
    merged = to_mcore(FUSED, MODEL, [fused])
    assert merged[::2, 0].tolist() == [100, 101, 200, 300, 102, 103, 201, 301]


def test_gate_stands_before_up():
    merged = to_mcore(GATE_UP, MODEL, [torch.zeros(5, 3), torch.ones(5, 3)])
    assert merged[:, 0].tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rest", [(3,), ()])
def test_both_directions_are_bit_exact(groups, rest, dtype):
    model = dataclasses.replace(MODEL, num_query_groups=groups)
    torch.manual_seed(0)
    qkv_rows = (4 + 2 * groups) * 2
    for rule, mcore_rows in ((QKV, qkv_rows), (FUSED, qkv_rows), (GATE_UP, 10), (COPY, 7)):
        shapes = hf_shapes(rule, model, (mcore_rows, *rest))
        tensors = [torch.randn(shape).to(dtype) for shape in shapes]
        merged = to_mcore(rule, model, tensors)
        assert merged.shape == (mcore_rows, *rest) and merged.dtype is dtype
        for before, after in zip(tensors, to_hf(rule, model, merged), strict=True):
            assert torch.equal(before, after) and after.is_contiguous()


def test_spans_name_every_row_of_both_sides_once():
    for rule, rows in ((QKV, 16), (FUSED, 16), (GATE_UP, 10), (COPY, 7)):
        places = spans(rule, MODEL, rows)
        assert [row for s in places for row in range(s.mcore, s.mcore + s.rows)] == [*range(rows)]
        shapes = hf_shapes(rule, MODEL, (rows, 3))
        there = sorted((s.part, row) for s in places for row in range(s.hf, s.hf + s.rows))
        assert there == [(p, row) for p, shape in enumerate(shapes) for row in range(shape[0])]


def test_expand_writes_every_layer_out():
    rules = (COPY, NameRule(mcore="l.{i}.x", hf=("h.{i}.y",), vocab=True))
    rows = expand(rules, 3)
    assert [(r.mcore, r.hf) for r in rows] == [
        ("a", ("b",)), ("l.0.x", ("h.0.y",)), ("l.1.x", ("h.1.y",)), ("l.2.x", ("h.2.y",)),
    ]  # fmt: skip
    assert rows[1].vocab and not rows[0].vocab
    assert rules[1].per_layer and not rows[1].per_layer


def test_a_name_used_twice_is_refused():
    with pytest.raises(CheckpointError, match="uses b twice"):
        expand((COPY, NameRule(mcore="c", hf=("b",))), 1)


def test_a_rule_counts_its_names():
    with pytest.raises(AssertionError, match="qkv takes 3 names"):
        NameRule(mcore="x", hf=("q", "k"), op="qkv")
