"""models.qwen3_moe: the published config.json, which layers have experts, what is refused."""

import pytest

from mindspeed_llm.config.model import ExpertsConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.names import expand
from mindspeed_llm.models.qwen3_moe import FAMILY, parse

QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
    "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_qwen3_30b_a3b():
    model = parse(QWEN3_30B_A3B)
    assert model.experts == ExpertsConfig(
        num_experts=128, top_k=8, ffn_hidden_size=768, renormalized=True, layers=tuple(range(48))
    )
    assert not model.is_mixed and model.is_sparse(0) and model.is_sparse(47)
    assert model.qk_norm and not model.qkv_bias and model.head_dim == 128
    assert model.sliding_window is None
    rules = expand(FAMILY.rules(model), 48)
    assert len(rules) == 3 + 48 * (7 + 2 * 128)
    assert all(rule.stacked for rule in rules)
    names = {name for rule in rules for name in rule.hf}
    assert "model.layers.47.mlp.experts.127.gate_proj.weight" in names
    assert "model.layers.47.mlp.gate.weight" in names
    assert "model.layers.0.mlp.gate_proj.weight" not in names


def test_both_names_of_the_number_of_experts():
    """transformers 5 writes num_local_experts."""
    renamed = {k: v for k, v in QWEN3_30B_A3B.items() if k != "num_experts"}
    assert parse(renamed | {"num_local_experts": 128}) == parse(QWEN3_30B_A3B)
    assert parse(QWEN3_30B_A3B | {"num_local_experts": 128}) == parse(QWEN3_30B_A3B)


def test_some_layers_without_experts():
    model = parse(QWEN3_30B_A3B | {"decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert model.experts.layers == (1, *range(5, 48, 2)) and model.is_mixed
    rules = {rule.mcore: rule for rule in expand(FAMILY.rules(model), 48)}
    assert not any(rule.stacked for rule in rules.values())
    assert "decoder.layers.0.mlp.linear_fc1.weight" in rules
    assert "decoder.layers.0.mlp.router.weight" not in rules
    assert "decoder.layers.1.mlp.router.weight" in rules
    assert rules["decoder.layers.0.pre_mlp_layernorm.weight"].fused
    assert not rules["decoder.layers.1.pre_mlp_layernorm.weight"].fused


def test_a_window_that_is_used_is_in_every_layer():
    model = parse(QWEN3_30B_A3B | {"use_sliding_window": True, "sliding_window": 64})
    assert model.sliding_window == 64 and model.layer_types == ("sliding",) * 48


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_local_experts": 64}, "num_experts is 128 and num_local_experts is 64"),
    ({"mlp_only_layers": [48]}, r"mlp_only_layers is \[48\]; expected a list of layers"),
    ({"decoder_sparse_step": 49}, "decoder_sparse_step is 49; expected a layer that has experts"),
    ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1; expected 2 or more"),
    ({"num_experts_per_tok": 129}, "129 experts a token of 128"),
    ({"shared_expert_intermediate_size": 5632}, "shared_expert_intermediate_size is 5632"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "not 'dynamic'"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(QWEN3_30B_A3B | changes)
