"""Owns the Gemma 2 family (2B, 9B, 27B): soft caps, alternating windows, norms on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Gemma 2 config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "gemma2")
    config.ignore("hidden_act")  # transformers reads hidden_activation only
    config.must_be("use_bidirectional_attention", False)
    attention_bias = config.flag("attention_bias", False)
    if attention_bias:
        config.wrong("attention_bias", "false: a bias before the norm behind attention "
                                       "is not supported")  # fmt: skip
    fields = common_fields(config, tie_word_embeddings=True, head_dim=256, num_key_value_heads=4)
    layers = fields["num_layers"]
    types = config.layer_types(layers) or tuple(
        "full" if i % 2 else "sliding" for i in range(layers)
    )
    window = config.integer("sliding_window", 4096)
    config.must_be("sliding_window_size", window)  # a second spelling in the published files
    model = ModelConfig(
        family="gemma2",
        **fields,
        activation=config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        rope=config.rope(10000.0),
        layer_types=types,
        sliding_window=window,
        attention_scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=config.absent_or("attn_logit_softcapping", 50.0, config.number),
        logit_softcap=config.absent_or("final_logit_softcapping", 30.0, config.number),
        embedding_scale=fields["hidden_size"] ** 0.5,
        zero_centered_norm=True,
        post_norms=True,
    )
    config.finish()
    return model


FAMILY = Family(name="gemma2", hf_model_types=("gemma2",), parse=parse, rules=decoder_rules)
