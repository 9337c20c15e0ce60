"""models.qwen3: the published config.json and what is refused."""

import pytest

from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.qwen3 import FAMILY, parse

QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_qwen3():
    model = parse(QWEN3_06B)
    assert model.qk_norm and not model.qkv_bias and not model.zero_centered_norm
    assert model.head_dim == 128  # not 1024 / 16
    names = {rule.mcore.split("{i}.")[-1] for rule in FAMILY.rules(model)}
    assert "self_attention.q_layernorm.weight" in names


def test_the_head_dimension_has_a_default_of_its_own():
    assert parse({k: v for k, v in QWEN3_06B.items() if k != "head_dim"}).head_dim == 128


def test_attention_bias_is_on_all_four_projections():
    model = parse(QWEN3_06B | {"attention_bias": True})
    assert model.qkv_bias and model.output_bias


@pytest.mark.parametrize(("changes", "message"), [
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "not 'dynamic'"),
    ({"num_experts": 128}, "num_experts is 128; expected no such key"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(QWEN3_06B | changes)
