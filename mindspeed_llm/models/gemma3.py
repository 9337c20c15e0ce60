"""Owns the Gemma 3 text family (270M, 1B): five sliding layers to one full, each kind with its own
rotary base, norms on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig, RopeConfig
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig, rope_table

GLOBAL_THETA, LOCAL_THETA, PATTERN = 1_000_000.0, 10_000.0, 6


def _ropes(config: HFConfig) -> tuple[RopeConfig, RopeConfig]:
    """Rotary embeddings of full and of sliding layers, from either spelling."""
    local = config.number("rope_local_base_freq", LOCAL_THETA)
    config.must_be("partial_rotary_factor", 1, 1.0)
    config.must_be("rope_interleaved", False)
    parameters = config.table("rope_parameters")
    if not parameters:
        theta = config.number("rope_theta", GLOBAL_THETA)
        scaling = config.take("rope_scaling")
        if isinstance(scaling, dict) and "type" in scaling and "rope_type" not in scaling:
            # transformers 4 took it for the kind, transformers 5 has no scaling then
            config.wrong("rope_scaling", "rope_type, not type: versions of transformers differ")
        return rope_table(config, "rope_scaling", scaling, theta), RopeConfig(theta=local)
    if set(parameters) - {"full_attention", "sliding_attention"}:
        config.wrong("rope_parameters", "the keys full_attention and sliding_attention")
    for key in ("rope_scaling", "rope_theta"):
        if config.take(key) is not None:
            config.wrong(key, "nothing beside rope_parameters")
    full, sliding = parameters.get("full_attention"), parameters.get("sliding_attention")
    return (
        rope_table(config, "rope_parameters.full_attention", full, GLOBAL_THETA),
        rope_table(config, "rope_parameters.sliding_attention", sliding, local),
    )


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Gemma 3 text config.json; raises ModelError for what is not supported."""
    config = HFConfig(hf, "gemma3")
    config.ignore("hidden_act")  # transformers reads hidden_activation only
    config.must_be("use_bidirectional_attention", False)
    # transformers' Gemma 3 text model has these two keys and applies neither cap to attention
    config.must_be("attn_logit_softcapping")
    config.must_be("attention_bias", False)
    fields = common_fields(config, tied=True, head_dim=256, groups=4)
    old = config.integer("sliding_window_pattern", None)
    pattern = config.integer("_sliding_window_pattern", old or PATTERN)
    types = config.layer_types(fields["num_layers"]) or tuple(
        "sliding" if (i + 1) % pattern else "full" for i in range(fields["num_layers"])
    )
    rope, local = _ropes(config)
    model = ModelConfig(
        family="gemma3",
        **fields,
        activation=config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        rope=rope,
        rope_local=local,
        layer_types=types,
        sliding_window=config.integer("sliding_window", 4096),
        attention_scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        logit_softcap=config.number("final_logit_softcapping", None),
        embedding_scale=fields["hidden_size"] ** 0.5,
        zero_centered_norm=True,
        post_norms=True,
        qk_norm=True,
    )
    config.finish()
    return model


FAMILY = Family(name="gemma3", hf_model_types=("gemma3_text",), parse=parse, rules=decoder_rules)
