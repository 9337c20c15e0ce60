"""Owns the Llama family: Llama 2, 3, 3.1, 3.2 (text) and SmolLM2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Llama config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "llama")
    attention_bias = config.flag("attention_bias", False)
    model = ModelConfig(
        family="llama",
        **common_fields(config),
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=config.rope(10000.0),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
    config.finish()
    return model


FAMILY = Family(name="llama", hf_model_types=("llama",), parse=parse, rules=decoder_rules)
