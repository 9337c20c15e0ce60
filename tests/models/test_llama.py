"""models.llama: published config.json files and what is refused."""

import pytest

from mindspeed_llm.config.model import RopeConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.llama import FAMILY, parse

LLAMA_3_2_1B = {  # the published file's keys, 4.x spelling
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip


def test_llama_3_2():
    model = parse(LLAMA_3_2_1B)
    assert model.family == "llama"
    assert (model.num_query_groups, model.head_dim, model.activation) == (8, 64, "silu")
    assert model.rope == RopeConfig(
        theta=500000.0, scaling="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position=8192,
    )  # fmt: skip
    assert model.tie_word_embeddings
    assert model.eos_token_ids == (128001, 128008, 128009)
    assert model.dtype == "bfloat16"
    assert not model.zero_centered_norm and model.attention_softcap is None


def test_what_older_files_leave_out():
    """Llama 2 files have neither head_dim nor rope_theta, biases or tie_word_embeddings."""
    gone = ("head_dim", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias",
            "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
    model = parse({k: v for k, v in LLAMA_3_2_1B.items() if k not in gone})
    assert (model.head_dim, model.num_query_groups) == (64, 32)
    assert model.rope == RopeConfig(theta=10000.0)
    assert not (model.tie_word_embeddings or model.qkv_bias or model.mlp_bias)


def test_smollm2s_own_keys():
    extra = {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
             "transformers.js_config": {"dtype": "q4"}}  # fmt: skip
    assert parse(LLAMA_3_2_1B | extra).rope == RopeConfig(theta=500000.0)


def test_biases():
    model = parse(LLAMA_3_2_1B | {"attention_bias": True})
    assert (model.qkv_bias, model.output_bias, model.mlp_bias) == (True, True, False)
    names = {rule.mcore.split("{i}.")[-1] for rule in FAMILY.rules(model)}
    assert {"self_attention.linear_qkv.bias", "self_attention.linear_proj.bias"} <= names
    assert "mlp.linear_fc1.bias" not in names


@pytest.mark.parametrize(("changes", "message"), [
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected one of gelu"),
    ({"head_dim": None, "num_attention_heads": 31}, "a multiple of 31 attention heads"),
    ({"num_key_value_heads": 5}, "not a multiple of 5"),
    ({"attention_bias": "yes"}, "attention_bias is 'yes'; expected true or false"),
    ({"sliding_window": 4096}, "sliding_window is 4096; expected no such key"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "not 'longrope'"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(LLAMA_3_2_1B | changes)
