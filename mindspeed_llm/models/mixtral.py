"""Owns the Mixtral family (8x7B, 8x22B): Mistral's attention, experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ExpertsConfig, ModelConfig
from mindspeed_llm.models.family import (
    ACTIVATIONS,
    TRAINING_KEYS,
    ExpertNames,
    Family,
    common_fields,
    decoder_rules,
    experts_a_token,
)
from mindspeed_llm.models.hf_config import HFConfig
from mindspeed_llm.models.names import NameRule

NAMES = ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2")


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Mixtral config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "mixtral")
    fields = common_fields(config, num_key_value_heads=8, rms_norm_eps=1e-5)
    config.must_be("router_jitter_noise", 0, 0.0)  # would change training
    config.ignore(*TRAINING_KEYS)
    window = config.integer("sliding_window", None)
    model = ModelConfig(
        family="mixtral",
        **fields,
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=config.rope(1_000_000.0),
        sliding_window=window,
        layer_types=("sliding",) * fields["num_layers"] if window else (),
        experts=ExpertsConfig(
            num_experts=config.same_integer("num_local_experts", "num_experts", 8),
            top_k=experts_a_token(config, 2, renormalized=True),
            ffn_hidden_size=fields["ffn_hidden_size"],
            renormalized=True,
            layers=tuple(range(fields["num_layers"])),
        ),
    )
    config.finish()
    return model


def rules(model: ModelConfig) -> tuple[NameRule, ...]:
    """Llama's names, but for the experts."""
    return decoder_rules(model, NAMES)


FAMILY = Family(name="mixtral", hf_model_types=("mixtral",), parse=parse, rules=rules)
