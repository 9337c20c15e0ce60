"""models.shapes: parameter counts of published models and shapes by hand."""

import pytest
import torch
import transformers

from mindspeed_llm.config.model import ModelConfig, RopeConfig
from mindspeed_llm.models.names import NameRule
from mindspeed_llm.models.registry import FAMILIES, read_model
from mindspeed_llm.models.shapes import count_parameters, mcore_shape

SMOLLM2_135M = ModelConfig(
    family="llama", num_layers=30, hidden_size=576, ffn_hidden_size=1536, num_attention_heads=9,
    num_query_groups=3, head_dim=64, vocab_size=49152, max_position_embeddings=8192,
    norm_epsilon=1e-5, activation="silu", tie_word_embeddings=True, rope=RopeConfig(theta=1e5),
)  # fmt: skip


def test_a_published_count():
    assert count_parameters(SMOLLM2_135M) == 134_515_008


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_counts_equal_transformers(name, tied, tiny_hf_model, tmp_path):
    directory = tiny_hf_model(name, tmp_path, tie_word_embeddings=tied)
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(directory)
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    assert count_parameters(read_model(directory)) == theirs.num_parameters()


@pytest.mark.parametrize(("name", "shape"), [
    ("embedding.word_embeddings.weight", (49152, 576)),
    ("decoder.layers.{i}.self_attention.linear_qkv.weight", (960, 576)),
    ("decoder.layers.{i}.self_attention.linear_qkv.bias", (960,)),
    ("decoder.layers.{i}.self_attention.linear_proj.weight", (576, 576)),
    ("decoder.layers.{i}.self_attention.q_layernorm.weight", (64,)),
    ("decoder.layers.{i}.mlp.linear_fc1.weight", (3072, 576)),
    ("decoder.layers.{i}.mlp.linear_fc2.weight", (576, 1536)),
    ("decoder.layers.{i}.mlp.linear_fc2.post_layernorm.weight", (576,)),
    ("decoder.final_layernorm.weight", (576,)),
])  # fmt: skip
def test_shapes(name, shape):
    assert mcore_shape(NameRule(mcore=name, hf=("x",)), SMOLLM2_135M) == shape
