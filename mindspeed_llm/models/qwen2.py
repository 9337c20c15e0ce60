"""Owns the Qwen2 family (Qwen2, Qwen2.5): biases on queries, keys and values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig


def window_fields(config: HFConfig, num_layers: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of Qwen2 and Qwen3.

    Files give a window that is only used with `use_sliding_window`, and then, without
    `layer_types`, from layer `max_window_layers` on.
    """
    window = config.integer("sliding_window", None if "sliding_window" in config.values else 4096)
    full_layers = config.take("max_window_layers")
    types = config.layer_types(num_layers)
    if not config.flag("use_sliding_window", False) or window is None:
        if types is not None and "sliding" in types:
            config.wrong("layer_types", "full attention only, as no sliding window is in use")
        return {}
    if full_layers is None:
        full_layers = 28  # transformers' default
    if type(full_layers) is not int or full_layers < 0:
        config.wrong("max_window_layers", "an integer >= 0")
    if types is None:
        types = tuple("full" if i < full_layers else "sliding" for i in range(num_layers))
    return {"sliding_window": window, "layer_types": types}


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Qwen2 config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "qwen2")
    config.must_be("use_mrope", False)
    fields = common_fields(config, num_key_value_heads=32)
    model = ModelConfig(
        family="qwen2",
        **fields,
        **window_fields(config, fields["num_layers"]),
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=config.rope(10000.0),
        qkv_bias=True,
    )
    config.finish()
    return model


FAMILY = Family(name="qwen2", hf_model_types=("qwen2",), parse=parse, rules=decoder_rules)
