"""models.gemma3: both spellings of its two rotary embeddings, its 5:1 windows, what is refused."""

import pytest

from mindspeed_llm.config.model import RopeConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.gemma3 import FAMILY, parse

GEMMA3_1B = {  # the published file's keys, 4.x spelling
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
ROPE_KEYS = ("rope_local_base_freq", "rope_scaling", "rope_theta", "sliding_window_pattern")
NEW = {k: v for k, v in GEMMA3_1B.items() if k not in ROPE_KEYS}
LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}


def test_gemma3():
    model = parse(GEMMA3_1B)
    assert model.qk_norm and model.post_norms and model.zero_centered_norm
    assert model.layer_types == (("sliding",) * 5 + ("full",)) * 4 + ("sliding",) * 2
    assert model.rope == RopeConfig(theta=1000000.0)
    assert model.rope_local == RopeConfig(theta=10000.0)
    assert model.attention_scale == 1 / 16
    assert model.eos_token_ids == (1, 106)
    assert model.attention_softcap is None and model.logit_softcap is None


def test_linear_scaling_is_for_full_layers_only():
    model = parse(GEMMA3_1B | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}})
    assert model.rope == RopeConfig(theta=1000000.0, scaling="linear", factor=8.0)
    assert model.rope_local == RopeConfig(theta=10000.0)


def test_both_spellings_say_the_same():
    types = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(26)]
    new = NEW | {"_sliding_window_pattern": 6, "layer_types": types, "rope_parameters": {
        "full_attention": LINEAR, "sliding_attention": LOCAL}}  # fmt: skip
    old = GEMMA3_1B | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    assert parse(new) == parse(old)


def test_queries_and_keys_have_norms():
    names = {rule.mcore.split("{i}.")[-1] for rule in FAMILY.rules(parse(GEMMA3_1B))}
    assert {"self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"} <= names


@pytest.mark.parametrize(("changes", "message"), [
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({"rope_scaling": {"factor": 8.0, "rope_type": "yarn"}}, "not 'yarn'"),
    ({"rope_scaling": {"factor": 8.0, "type": "linear"}}, "rope_type, not type"),
    ({"rope_parameters": {"full_attention": LINEAR}}, "rope_theta is 1000000"),
    ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(GEMMA3_1B | changes)


@pytest.mark.parametrize(("rope", "message"), [
    ({"full_attention": LINEAR, "chunked_attention": LOCAL}, "the keys full_attention and"),
    (LINEAR, "the keys full_attention and"),
    ({"full_attention": {**LINEAR, "rope_type": "yarn"}}, "full_attention is .*yarn"),
    ({"full_attention": [1]}, "rope_parameters.full_attention is .1.; expected a JSON object"),
])  # fmt: skip
def test_wrong_rope_tables(rope, message):
    with pytest.raises(ModelError, match=message):
        parse(NEW | {"rope_parameters": rope})
