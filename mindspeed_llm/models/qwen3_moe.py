"""Owns the Qwen3 family with routed experts (Qwen3-30B-A3B, Qwen3-235B-A22B): dense Qwen3's
attention, experts in all layers or in some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ExpertsConfig, ModelConfig
from mindspeed_llm.models.family import (
    ACTIVATIONS,
    TRAINING_KEYS,
    Family,
    common_fields,
    decoder_rules,
    experts_a_token,
)
from mindspeed_llm.models.hf_config import HFConfig

WINDOW, NUM_EXPERTS = 4096, 128  # transformers' defaults


def _layers(config: HFConfig, num_layers: int) -> tuple[int, ...]:
    """Layers with experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    step, dense = config.integer("decoder_sparse_step", 1), config.take("mlp_only_layers") or []
    known = range(num_layers)
    if not isinstance(dense, list) or not all(type(i) is int and i in known for i in dense):
        config.wrong("mlp_only_layers", f"a list of layers from 0 to {num_layers - 1}")
    layers = tuple(i for i in range(num_layers) if i not in dense and (i + 1) % step == 0)
    if not layers:
        config.wrong("decoder_sparse_step", "a layer that has experts")
    return layers


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Qwen3-MoE config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "qwen3_moe")
    bias = config.flag("attention_bias", False)
    # transformers does not read it here: a window that is used is in every layer
    config.ignore("max_window_layers")
    window = config.integer("sliding_window", None if "sliding_window" in hf else WINDOW)
    window = window if config.flag("use_sliding_window", False) else None
    normed = config.flag("norm_topk_prob", False)
    fields = common_fields(config, num_key_value_heads=4)
    config.ignore(*TRAINING_KEYS)
    model = ModelConfig(
        family="qwen3_moe",
        **fields,
        sliding_window=window,
        layer_types=("sliding",) * fields["num_layers"] if window else (),
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=config.rope(10000.0),
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        experts=ExpertsConfig(
            num_experts=config.same_integer("num_experts", "num_local_experts", NUM_EXPERTS),
            top_k=experts_a_token(config, 8, renormalized=normed),
            ffn_hidden_size=config.integer("moe_intermediate_size", 768),
            renormalized=normed,
            layers=_layers(config, fields["num_layers"]),
        ),
    )
    config.finish()
    return model


FAMILY = Family(name="qwen3_moe", hf_model_types=("qwen3_moe",), parse=parse, rules=decoder_rules)
