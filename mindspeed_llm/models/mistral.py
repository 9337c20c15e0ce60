"""Owns the Mistral family (7B and what shares its model_type): a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Mistral config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "mistral")
    fields = common_fields(config, num_key_value_heads=8)
    # null means no window (v0.2 and later); only a file that does not say has transformers' 4096
    window = config.integer("sliding_window", None if "sliding_window" in hf else 4096)
    model = ModelConfig(
        family="mistral",
        **fields,
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=config.rope(10000.0),
        sliding_window=window,
        layer_types=("sliding",) * fields["num_layers"] if window else (),
    )
    config.finish()
    return model


FAMILY = Family(name="mistral", hf_model_types=("mistral",), parse=parse, rules=decoder_rules)
