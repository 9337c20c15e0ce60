"""Owns the Phi-3 family (Phi-3, Phi-3.5, Phi-4 mini): query, key and value in one tensor, gate and
up in another, longrope, rotation of a part of each head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig, RopeConfig
from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.family import ACTIVATIONS, Family, common_fields, decoder_rules
from mindspeed_llm.models.hf_config import HFConfig, rope_table
from mindspeed_llm.models.names import NameRule

# The published files still name the code from before transformers had it. Nothing of it is read;
# any other value is refused like everybody's.
PUBLISHED_CODE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    "AutoTokenizer": "Xenova/gpt-4o",  # Phi-4-mini
}
ORIGINAL_CONTEXT = 4096  # transformers' default of original_max_position_embeddings
_LONGROPE = ("longrope", "su", "yarn")  # "su" and, in the first files, "yarn" meant the same


def _without_published_code(hf: Mapping[str, Any]) -> dict[str, Any]:
    code = hf.get("auto_map")
    known = isinstance(code, dict) and code.items() <= PUBLISHED_CODE.items()
    return {key: value for key, value in hf.items() if key != "auto_map" or not known}


def _rope(config: HFConfig, head_dim: int) -> tuple[RopeConfig, int | None]:
    """Rotary embedding and the turning dimensions, from either spelling."""
    new, old = config.take("rope_parameters"), config.take("rope_scaling")
    if new is not None and old is not None and new != old:
        config.wrong("rope_scaling", f"nothing beside rope_parameters {new!r}")
    key = "rope_parameters" if new is not None else "rope_scaling"
    table = dict(config.table(key))
    part, inner = (
        config.number("partial_rotary_factor", None),
        table.pop("partial_rotary_factor", None),
    )
    if None not in (part, inner) and part != inner:
        config.wrong("partial_rotary_factor", f"the {inner!r} of {key}")
    part = next((p for p in (inner, part) if p is not None), 1.0)
    if type(part) not in (int, float) or not 0 < part <= 1:
        config.wrong("partial_rotary_factor", "a number above 0 and at most 1", part)
    turning = int(head_dim * part)
    if turning % 2:
        config.wrong("partial_rotary_factor", f"an even part of a head of {head_dim}", part)
    top = config.number("rope_theta", None)
    theta = 10000.0 if top is None else top
    original = config.integer("original_max_position_embeddings", ORIGINAL_CONTEXT)
    if table.get("rope_type", table.get("type")) in _LONGROPE:
        rope = _longrope(config, key, table, turning, theta, original)
    else:
        table.pop("original_max_position_embeddings", None)
        rope = rope_table(config, key, table or None, theta, theta_given=top)
        if rope.scaling is not None:
            config.wrong(key, "rope_type default or longrope")
    return rope, None if turning == head_dim else turning


def _longrope(
    config: HFConfig, key: str, table: dict[str, Any], turning: int, theta: float, original: int
) -> RopeConfig:
    """Longrope from its table, as transformers reads it (`_compute_longrope_parameters`)."""
    known = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "factor",
             "attention_factor", "short_factor", "long_factor"}  # fmt: skip
    said = {name: value for name, value in table.items() if value is not None}
    if set(said) - known:
        config.wrong(key, f"no {sorted(set(said) - known)[0]!r} for longrope")
    if said.get("original_max_position_embeddings", original) != original:
        config.wrong(key, f"the original_max_position_embeddings {original} of the whole file")
    factors = []
    for name in ("short_factor", "long_factor"):
        value = said.get(name)
        listed = value if isinstance(value, list) else []
        numbers = [n for n in listed if type(n) in (int, float) and 0 < n < 1e300]
        if len(numbers) != turning // 2 or len(listed) != len(numbers):
            raise ModelError(
                f"config.json of a phi3 model: {key}.{name} has {len(numbers)} numbers > 0 in "
                f"{len(listed)} entries; expected {turning // 2}, half of the dimensions that turn"
            )
        factors.append(tuple(float(n) for n in numbers))
    longest = config.integer("max_position_embeddings")
    stated = {
        name: HFConfig({name: said.get(name)}, config.family).number(name, None)
        for name in ("factor", "attention_factor", "rope_theta")
    }
    stretch = stated["factor"] or longest / original
    amplitude = stated["attention_factor"]
    if amplitude is None:
        amplitude = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return RopeConfig(
        theta=stated["rope_theta"] or theta,
        scaling="longrope",
        original_max_position=original,
        short_factors=factors[0],
        long_factors=factors[1],
        amplitude=amplitude,
    )


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """ModelConfig of a Phi-3 config.json; raises ModelError for what is not supported."""
    config = HFConfig(_without_published_code(hf), "phi3")
    config.must_be("attention_bias", False)
    config.must_be("embd_pdrop", 0, 0.0)
    config.must_be("resid_pdrop", 0, 0.0)
    config.ignore("full_attn_mod", "interpolate_factor")  # Phi-4-mini's; transformers reads neither
    fields = common_fields(config, rms_norm_eps=1e-5)
    window = config.integer("sliding_window", None)
    rope, turning = _rope(config, fields["head_dim"])
    model = ModelConfig(
        family="phi3",
        **fields,
        activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
        rope=rope,
        rotary_dim=turning,
        sliding_window=window,
        layer_types=("sliding",) * fields["num_layers"] if window else (),
    )
    config.finish()
    return model


def rules(model: ModelConfig) -> tuple[NameRule, ...]:
    """Llama's names, but for two fused tensors; gate above up is megatron-core's own order."""
    layer = "decoder.layers.{i}."
    return (
        *(rule for rule in decoder_rules(model) if rule.op == "copy"),
        NameRule(mcore=layer + "self_attention.linear_qkv.weight", op="fused_qkv",
                 hf=("model.layers.{i}.self_attn.qkv_proj.weight",)),
        NameRule(mcore=layer + "mlp.linear_fc1.weight",
                 hf=("model.layers.{i}.mlp.gate_up_proj.weight",)),
    )  # fmt: skip


FAMILY = Family(name="phi3", hf_model_types=("phi3",), parse=parse, rules=rules)
