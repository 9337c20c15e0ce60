"""models.mistral: with and without window, and what is refused."""

import pytest

from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.mistral import parse

MISTRAL_7B_V01 = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip


def test_the_window_is_in_every_layer():
    model = parse(MISTRAL_7B_V01)
    assert model.layer_types == ("sliding",) * 32 and model.sliding_window == 4096


def test_null_is_no_window_and_silence_is_4096():
    model = parse(MISTRAL_7B_V01 | {"sliding_window": None})
    assert model.layer_types == () and model.sliding_window is None
    silent = {k: v for k, v in MISTRAL_7B_V01.items() if k != "sliding_window"}
    assert parse(silent) == parse(MISTRAL_7B_V01)


@pytest.mark.parametrize(("changes", "message"), [
    ({"sliding_window": 0}, "sliding_window is 0"),
    ({"attention_bias": True}, "attention_bias is True; expected no such key"),
    ({"layer_types": ["full_attention"] * 32}, "expected no such key"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(MISTRAL_7B_V01 | changes)
