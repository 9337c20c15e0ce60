"""models.mixtral: the published config.json, the names of its experts, what is refused."""

import pytest

from mindspeed_llm.config.model import ExpertsConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.mixtral import FAMILY, parse

MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
    "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip


def test_mixtral_8x7b():
    model = parse(MIXTRAL_8X7B)
    assert model.experts == ExpertsConfig(
        num_experts=8, top_k=2, ffn_hidden_size=14336, renormalized=True, layers=tuple(range(32))
    )
    assert model.head_dim == 128 and model.rope.theta == 1e6 and model.sliding_window is None
    rows = {rule.mcore.split("{i}.")[-1]: rule.hf for rule in FAMILY.rules(model)}
    block = "model.layers.{i}.block_sparse_moe."
    assert rows["mlp.router.weight"] == (block + "gate.weight",)
    assert rows["mlp.experts.local_experts.{e}.linear_fc1.weight"] == (
        block + "experts.{e}.w1.weight", block + "experts.{e}.w3.weight")  # fmt: skip
    assert rows["mlp.experts.local_experts.{e}.linear_fc2.weight"] == (
        block + "experts.{e}.w2.weight",
    )


def test_a_window_is_in_every_layer():
    model = parse(MIXTRAL_8X7B | {"sliding_window": 4096})
    assert model.layer_types == ("sliding",) * 32


@pytest.mark.parametrize(("changes", "message"), [
    ({"router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
    ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1; expected 2 or more"),
    ({"num_local_experts": 0}, "num_local_experts is 0; expected an integer >= 1"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(MIXTRAL_8X7B | changes)
