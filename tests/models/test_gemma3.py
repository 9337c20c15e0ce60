"""models.gemma3: both spellings of its two rotary embeddings, its 5:1 windows, what is refused."""

import pytest
import transformers

from mindspeed_llm.config.model import RopeConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.gemma3 import DEFAULTS, FAMILY, parse, text_config, text_name

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


GEMMA3_4B = {  # the published file, whose text_config leaves out what transformers has by default
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
    "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
    "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024},
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}  # fmt: skip


def test_the_language_model_of_a_multimodal_file():
    model = parse(GEMMA3_4B)
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (34, 2560, 8)
    assert (model.num_query_groups, model.head_dim, model.vocab_size) == (4, 256, 262208)
    assert (model.sliding_window, model.max_position_embeddings) == (1024, 131072)
    assert model.rope == RopeConfig(theta=1000000.0, scaling="linear", factor=8.0)
    assert (model.eos_token_ids, model.dtype) == ((1, 106), "bfloat16")
    assert model.tie_word_embeddings
    assert parse(text_config(GEMMA3_4B)) == model
    assert text_config(GEMMA3_1B) is GEMMA3_1B
    theirs = transformers.Gemma3TextConfig(**GEMMA3_4B["text_config"])
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
                 "max_position_embeddings", "tie_word_embeddings"):  # fmt: skip
        assert DEFAULTS[name] == getattr(theirs, name), name


@pytest.mark.parametrize(("changes", "message"), [
    ({"text_config": None}, "text_config is None"),
    ({"text_config": {"model_type": "llama"}}, "model_type gemma3_text"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"text_config": {**GEMMA3_4B["text_config"], "attn_logit_softcapping": 50.0}}, "softcapping"),
])  # fmt: skip
def test_multimodal_files_that_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(GEMMA3_4B | changes)


@pytest.mark.parametrize(("stored", "name"), [
    ("language_model.model.norm.weight", "model.norm.weight"),
    ("language_model.lm_head.weight", "lm_head.weight"),
    ("model.language_model.norm.weight", "model.norm.weight"),
    ("model.norm.weight", "model.norm.weight"),
    ("vision_tower.vision_model.post_layernorm.weight", None),
    ("model.multi_modal_projector.mm_soft_emb_norm.weight", None),
])  # fmt: skip
def test_names_in_multimodal_files(stored, name):
    assert text_name(stored) == name


@pytest.mark.parametrize(("rope", "message"), [
    ({"full_attention": LINEAR, "chunked_attention": LOCAL}, "the keys full_attention and"),
    (LINEAR, "the keys full_attention and"),
    ({"full_attention": {**LINEAR, "rope_type": "yarn"}}, "full_attention is .*yarn"),
    ({"full_attention": [1]}, "rope_parameters.full_attention is .1.; expected a JSON object"),
])  # fmt: skip
def test_wrong_rope_tables(rope, message):
    with pytest.raises(ModelError, match=message):
        parse(NEW | {"rope_parameters": rope})
