"""models.gemma: the published config.json and what is refused."""

import pytest

from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.gemma import parse

GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 16384,
    "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
    "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip


@pytest.mark.parametrize("changes", [
    {}, {"hidden_act": "gelu_pytorch_tanh"}, {"hidden_activation": "gelu_pytorch_tanh"},
])  # fmt: skip
def test_gemma_means_tanh_gelu_however_it_says_so(changes):
    model = parse(GEMMA_2B | changes)
    assert model.activation == "gelu_tanh"
    assert model.zero_centered_norm and model.tie_word_embeddings and not model.post_norms
    assert model.embedding_scale == 2048**0.5
    assert (model.num_query_groups, model.head_dim, model.layer_types) == (1, 256, ())


@pytest.mark.parametrize(("changes", "message"), [
    ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; expected no such key"),
])  # fmt: skip
def test_what_is_not_supported(changes, message):
    with pytest.raises(ModelError, match=message):
        parse(GEMMA_2B | changes)
