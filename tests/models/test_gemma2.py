"""models.gemma2: the published config.json and what is refused."""

import pytest

from mindspeed_llm.config.model import RopeConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.gemma2 import FAMILY, parse

GEMMA2_27B = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608, "initializer_range": 0.02, "intermediate_size": 36864,
    "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 32,
    "num_hidden_layers": 46, "num_key_value_heads": 16, "pad_token_id": 0,
    "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "sliding_window": 4096, "sliding_window_size": 4096, "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip


def test_gemma2():
    model = parse(GEMMA2_27B)
    assert model.activation == "gelu_tanh"
    assert model.attention_scale == 1 / 12  # 144 ** -0.5, not head_dim ** -0.5
    assert (model.attention_softcap, model.logit_softcap) == (50.0, 30.0)
    assert model.embedding_scale == 4608**0.5
    assert model.tie_word_embeddings and model.zero_centered_norm and model.post_norms
    assert model.layer_types == ("sliding", "full") * 23
    assert model.sliding_window == 4096
    assert model.rope == RopeConfig(theta=10000.0) and model.rope_local is None


def test_norms_around_attention_and_mlp_have_their_own_names():
    rows = {rule.mcore.split("{i}.")[-1]: rule.hf[0].split("{i}.")[-1]
            for rule in FAMILY.rules(parse(GEMMA2_27B))}  # fmt: skip
    assert rows["self_attention.linear_proj.post_layernorm.weight"] == (
        "post_attention_layernorm.weight"
    )
    assert rows["pre_mlp_layernorm.weight"] == "pre_feedforward_layernorm.weight"
    assert rows["mlp.linear_fc2.post_layernorm.weight"] == "post_feedforward_layernorm.weight"
    assert "output_layer.weight" not in rows


def test_soft_caps_may_be_off():
    model = parse(GEMMA2_27B | {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert model.attention_softcap is None and model.logit_softcap is None
    said = {key: value for key, value in GEMMA2_27B.items() if not key.endswith("softcapping")}
    model = parse(said)  # not null: transformers' defaults
    assert (model.attention_softcap, model.logit_softcap) == (50.0, 30.0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"attention_bias": True}, "attention_bias is True"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({"sliding_window_size": 1024}, "sliding_window_size is 1024; expected 4096"),
    ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
    ({"attn_logit_softcapping": -50.0}, "attn_logit_softcapping is -50.0"),
    ({"layer_types": ["chunked_attention"] * 46}, "46 entries of"),
    ({"layer_types": ["full_attention"]}, "46 entries of"),
    ({"layer_types": "full_attention"}, "a list of strings"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(GEMMA2_27B | changes)
