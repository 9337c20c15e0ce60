"""models.qwen2: the published config.json, its windows, what is refused."""

import pytest

from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.qwen2 import FAMILY, parse

QWEN2_5_05B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip


def test_qwen2_5():
    model = parse(QWEN2_5_05B)
    assert model.qkv_bias and not model.output_bias and not model.mlp_bias
    assert model.head_dim == 64 and model.rope.theta == 1e6 and model.tie_word_embeddings
    assert model.sliding_window is None and model.layer_types == ()
    names = {rule.mcore.split("{i}.")[-1] for rule in FAMILY.rules(model)}
    assert "self_attention.linear_qkv.bias" in names
    assert "self_attention.linear_proj.bias" not in names


def test_a_window_that_is_used_starts_at_max_window_layers():
    model = parse(QWEN2_5_05B | {"use_sliding_window": True, "sliding_window": 1024})
    assert model.layer_types == ("full",) * 21 + ("sliding",) * 3
    assert model.sliding_window == 1024
    assert parse(QWEN2_5_05B | {"use_sliding_window": True, "sliding_window": None}) == parse(
        QWEN2_5_05B
    )


@pytest.mark.parametrize(("changes", "message"), [
    ({"use_mrope": True}, "use_mrope is True"),
    ({"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers is -1"),
    ({"layer_types": ["sliding_attention"] * 24}, "no sliding window is in use"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "not 'dynamic'"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(QWEN2_5_05B | changes)
