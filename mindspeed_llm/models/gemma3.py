"""Owns the Gemma 3 family (270M, 1B, and the language models of 4B to 27B): five sliding layers to
one full, each kind with its own rotary base, norms on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig, RopeConfig
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig, rope_table

GLOBAL_THETA, LOCAL_THETA, PATTERN = 1_000_000.0, 10_000.0, 6


# What the published files of 4B leave out.
DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 262208,
            "max_position_embeddings": 131072}  # fmt: skip
# Of files that describe a vision tower as well: what stands outside of text_config.
OUTER = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")
TEXT_NAMES = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.",
              "model.language_model.": "model."}  # fmt: skip
VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
          "model.multi_modal_projector.")  # fmt: skip


def text_config(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json of the language model alone; raises ModelError for remote code in either."""
    config = HFConfig(hf, "gemma3")
    text = config.table("text_config")
    if not text:
        if hf.get("model_type") == "gemma3":
            config.wrong("text_config", "the configuration of the language model")
        return hf
    if text.get("model_type", "gemma3_text") != "gemma3_text":
        config.wrong("text_config", "model_type gemma3_text")
    tied = {} if hf.get("tie_word_embeddings") is None else {
        "tie_word_embeddings": hf["tie_word_embeddings"]
    }  # fmt: skip
    outer = {key: hf[key] for key in OUTER if hf.get(key) is not None}
    own = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return tied | dict(text) | outer | own


def text_name(name: str) -> str | None:
    """A tensor's name in the language model alone; None: a tensor of the vision part."""
    if name.startswith(VISION):
        return None
    for prefix, plain in TEXT_NAMES.items():
        if name.startswith(prefix):
            return plain + name[len(prefix) :]
    return name


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
    config = HFConfig(text_config(hf), "gemma3")
    config.ignore("hidden_act")  # transformers reads hidden_activation only
    config.must_be("use_bidirectional_attention", False)
    # transformers' Gemma 3 text model has these two keys and applies neither cap to attention
    config.must_be("attn_logit_softcapping")
    config.must_be("attention_bias", False)
    fields = common_fields(config, **DEFAULTS)
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


FAMILY = Family(
    name="gemma3",
    hf_model_types=("gemma3_text", "gemma3"),
    parse=parse,
    rules=decoder_rules,
    text_config=text_config,
    text_name=text_name,
)
