"""kernels.rotary against transformers' tables and rotation, bit for bit."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from mindspeed_llm.kernels.rotary import (
    angles,
    inverse_frequencies,
    llama3_frequencies,
    longrope_frequencies,
    rotate,
    yarn_frequencies,
)

FACTORS = tuple(1.0 + i / 7 for i in range(32))
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0}
TABLES = {
    "default": inverse_frequencies(64, 500000.0),
    "linear": inverse_frequencies(64, 500000.0, factor=8.0),
    "llama3": llama3_frequencies(
        inverse_frequencies(64, 500000.0), original_max_position=8192, **LLAMA3
    ),
    "yarn": yarn_frequencies(
        64, 500000.0, original_max_position=8192, whole_dimensions=True, **YARN
    ),
    "longrope": longrope_frequencies(64, 500000.0, FACTORS),
}


def hugging_face(kind):
    rope = {"rope_type": kind, "rope_theta": 500000.0}
    if kind == "linear":
        rope["factor"] = 8.0
    if kind == "llama3":
        rope |= LLAMA3 | {"original_max_position_embeddings": 8192}
    if kind == "yarn":
        rope |= YARN | {"original_max_position_embeddings": 8192, "attention_factor": 1.0}
    if kind == "longrope":  # attention_factor 1: our tables hold no amplitude
        rope |= {"short_factor": list(FACTORS), "long_factor": [9.0] * 32, "factor": 4.0,
                 "attention_factor": 1.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, head_dim=64,
                         max_position_embeddings=131072, rope_parameters=rope)  # fmt: skip
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_frequencies_equal_transformers(kind):
    assert torch.equal(TABLES[kind], hugging_face(kind).inv_freq)


def test_llama3_has_all_three_bands():
    ratio = TABLES["default"] / TABLES["llama3"]
    assert (ratio == 1).any() and (ratio == 8).any() and ((ratio > 1.01) & (ratio < 7.99)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(TABLES))
def test_rotation_equals_transformers(kind, dtype):
    torch.manual_seed(0)
    x = torch.randn(300, 2, 3, 64).to(dtype)  # [s, b, n, d]
    heads_first = x.permute(1, 2, 0, 3)
    cos, sin = hugging_face(kind)(heads_first, torch.arange(300)[None])
    theirs, _ = apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
    ours = rotate(x, angles(300, TABLES[kind]))
    assert ours.dtype is dtype
    assert torch.equal(ours, theirs.permute(2, 0, 1, 3))


def test_a_part_of_the_dimensions_turns():
    torch.manual_seed(0)
    x = torch.randn(7, 2, 3, 96)
    turned = rotate(x, angles(7, TABLES["default"]))
    assert torch.equal(turned[..., :64], rotate(x[..., :64], angles(7, TABLES["default"])))
    assert torch.equal(turned[..., 64:], x[..., 64:])


def test_angles_start_at_zero_and_have_two_equal_halves():
    table = angles(5, TABLES["default"])
    assert table.shape == (5, 1, 1, 64)
    assert not table[0].any()
    assert torch.equal(table[..., :32], table[..., 32:])
