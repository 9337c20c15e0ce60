"""Owns the first Gemma family (2B, 7B): Gemma 2 without soft caps, windows and outer norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.family import Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Gemma config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "gemma")
    config.must_be("use_bidirectional_attention", False)
    config.must_be("attention_bias", False)
    # Trained with tanh-GELU. Early files say "gelu", which transformers, too, takes for it.
    config.must_be("hidden_activation", "gelu_pytorch_tanh")
    config.must_be("hidden_act", "gelu_pytorch_tanh", "gelu")
    fields = common_fields(config, tie_word_embeddings=True, head_dim=256, num_key_value_heads=16)
    model = ModelConfig(
        family="gemma",
        **fields,
        activation="gelu_tanh",
        rope=config.rope(10000.0),
        embedding_scale=fields["hidden_size"] ** 0.5,
        zero_centered_norm=True,
    )
    config.finish()
    return model


FAMILY = Family(name="gemma", hf_model_types=("gemma",), parse=parse, rules=decoder_rules)
