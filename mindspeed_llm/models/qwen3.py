"""Owns the dense Qwen3 family: norms on queries and keys, a head dimension of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig
from mindspeed_llm.models.qwen2 import window_fields

HEAD_DIM = 128  # transformers' default, whatever hidden_size and heads are


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Qwen3 config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "qwen3")
    bias = config.flag("attention_bias", False)
    fields = common_fields(config, head_dim=HEAD_DIM, num_key_value_heads=32)
    model = ModelConfig(
        family="qwen3",
        **fields,
        **window_fields(config, fields["num_layers"]),
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=config.rope(10000.0),
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
    )
    config.finish()
    return model


FAMILY = Family(name="qwen3", hf_model_types=("qwen3",), parse=parse, rules=decoder_rules)
