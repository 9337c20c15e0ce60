"""Owns what a model family is, and the rows that the families' name tables share.

It knows the names on both sides and no module; `registry` holds the list of families.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.hf_config import HFConfig
from mindspeed_llm.models.names import NameRule

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


# Of experts, without influence on what a model answers. In training transformers adds a balancing
# loss where the first is true; here the flag --moe-aux-loss-coeff says it, and nothing else.
TRAINING_KEYS = ("output_router_logits", "router_aux_loss_coef")


def _as_it_is(value: Any) -> Any:
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    Attributes:
        name: our name, `ModelConfig.family`.
        hf_model_types: values of `model_type` in config.json.
        parse: config.json as a dictionary -> ModelConfig; raises ModelError.
        rules: the name table for a model of this family.
        text_config: config.json of the language model alone, of files that describe more.
        text_name: the name that a tensor of such files has in the language model alone; None: it
            belongs to another part.
    """

    name: str
    hf_model_types: tuple[str, ...]
    parse: Callable[[Mapping[str, Any]], ModelConfig]
    rules: Callable[[ModelConfig], tuple[NameRule, ...]]
    text_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_it_is
    text_name: Callable[[str], str | None] = _as_it_is


_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}


def common_fields(config: HFConfig, **defaults: Any) -> dict[str, Any]:
    """ModelConfig arguments that every family spells alike.

    Args:
        config: the file being read.
        defaults: of transformers' configuration class, for keys that files may leave out. Without
            one, `head_dim` is hidden_size / num_attention_heads and `num_key_value_heads` is
            num_attention_heads, which null means, too; other sizes must be there.
    """
    defaults = _DEFAULTS | defaults

    def size(key: str) -> int:
        return config.integer(key, defaults[key]) if key in defaults else config.integer(key)

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    head_dim = config.absent_or("head_dim", defaults.get("head_dim"), config.integer)
    groups = defaults.get("num_key_value_heads")
    if head_dim is None:
        if hidden % heads:
            config.wrong("hidden_size", f"a multiple of {heads} attention heads, or head_dim")
        head_dim = hidden // heads
    config.must_be("attention_dropout", 0, 0.0)
    return {
        "num_layers": config.integer("num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": config.integer("intermediate_size"),
        "num_attention_heads": heads,
        "num_query_groups": config.absent_or("num_key_value_heads", groups, config.integer)
        or heads,
        "head_dim": head_dim,
        "vocab_size": size("vocab_size"),
        "max_position_embeddings": size("max_position_embeddings"),
        "norm_epsilon": config.number("rms_norm_eps", defaults["rms_norm_eps"]),
        "tie_word_embeddings": config.flag("tie_word_embeddings", defaults["tie_word_embeddings"]),
        "bos_token_id": config.token_id("bos_token_id"),
        "eos_token_ids": config.token_ids("eos_token_id"),
        "pad_token_id": config.token_id("pad_token_id"),
        "dtype": config.dtype(),
    }


def experts_a_token(config: HFConfig, default: int, *, renormalized: bool) -> int:
    """`num_experts_per_tok`: how many experts each token goes to."""
    top_k = config.integer("num_experts_per_tok", default)
    if top_k == 1 and renormalized:
        config.wrong("num_experts_per_tok", "2 or more: a softmax over one expert alone is always "
                     "1, whatever the router says, which could not be trained", top_k)  # fmt: skip
    return top_k


_LAYER = "decoder.layers.{i}."
_HF = "model.layers.{i}."


def _attention_rules(model: ModelConfig) -> list[NameRule]:
    ours, theirs = _LAYER + "self_attention.", _HF + "self_attn."
    qkv = tuple(f"{theirs}{p}_proj" for p in "qkv")
    rows = [
        NameRule(mcore=ours + "linear_qkv.weight", hf=tuple(n + ".weight" for n in qkv), op="qkv"),
        NameRule(mcore=ours + "linear_proj.weight", hf=(theirs + "o_proj.weight",)),
    ]
    if model.qkv_bias:
        rows.append(NameRule(mcore=ours + "linear_qkv.bias", hf=tuple(n + ".bias" for n in qkv),
                             op="qkv"))  # fmt: skip
    if model.output_bias:
        rows.append(NameRule(mcore=ours + "linear_proj.bias", hf=(theirs + "o_proj.bias",)))
    if model.qk_norm:
        rows += [NameRule(mcore=f"{ours}{p}_layernorm.weight", hf=(f"{theirs}{p}_norm.weight",))
                 for p in "qk"]  # fmt: skip
    return rows


def _norms_before_mlp(model: ModelConfig) -> list[NameRule]:
    norm = "pre_feedforward_layernorm" if model.post_norms else "post_attention_layernorm"
    rule = NameRule(
        mcore=_LAYER + "pre_mlp_layernorm.weight", hf=(f"{_HF}{norm}.weight",), fused=True
    )
    if model.experts is None:
        return [rule]
    # megatron-core fuses no norm with experts
    apart = dataclasses.replace(rule, fused=False, layers=model.experts.layers)
    return [apart, dataclasses.replace(rule, layers=_dense_layers(model))]


def _dense_layers(model: ModelConfig) -> tuple[int, ...]:
    return tuple(i for i in range(model.num_layers) if not model.is_sparse(i))


@dataclasses.dataclass(frozen=True)
class ExpertNames:
    """What a family calls its experts, below `model.layers.{i}.`."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


def _expert_rules(model: ModelConfig, names: ExpertNames) -> list[NameRule]:
    assert model.experts is not None
    ours, theirs = _LAYER + "mlp.", f"{_HF}{names.block}."
    own, each = ours + "experts.local_experts.{e}.", theirs + "experts.{e}."
    layers, count = model.experts.layers, model.experts.num_experts
    return [
        NameRule(mcore=ours + "router.weight", hf=(theirs + "gate.weight",), layers=layers),
        NameRule(mcore=own + "linear_fc1.weight", op="gate_up", layers=layers, experts=count,
                 hf=(f"{each}{names.gate}.weight", f"{each}{names.up}.weight")),
        NameRule(mcore=own + "linear_fc2.weight", layers=layers, experts=count,
                 hf=(f"{each}{names.down}.weight",)),
    ]  # fmt: skip


def _mlp_rules(model: ModelConfig) -> list[NameRule]:
    ours, theirs = _LAYER + "mlp.", _HF + "mlp."
    layers = None if model.experts is None else _dense_layers(model)
    rows = []
    for part in ("weight", "bias") if model.mlp_bias else ("weight",):
        rows += [
            NameRule(mcore=f"{ours}linear_fc1.{part}", op="gate_up", layers=layers,
                     hf=(f"{theirs}gate_proj.{part}", f"{theirs}up_proj.{part}")),
            NameRule(mcore=f"{ours}linear_fc2.{part}", hf=(f"{theirs}down_proj.{part}",),
                     layers=layers),
        ]  # fmt: skip
    return rows


def decoder_rules(model: ModelConfig, experts: ExpertNames = ExpertNames()) -> tuple[NameRule, ...]:
    """Name table of a decoder whose Hugging Face names are Llama's, with the extras of `model`.

    With `post_norms` (Gemma2, Gemma3) Hugging Face's `post_attention_layernorm` is the norm behind
    the attention, and `pre_feedforward_layernorm` the one before the MLP; without, the first of
    these names is the norm before the MLP. Our norms behind a sub-layer belong to its last linear
    layer (see `mindspeed_llm.models.layers.PostNormRowParallelLinear`).
    """
    rows = [
        NameRule(mcore="embedding.word_embeddings.weight", hf=("model.embed_tokens.weight",),
                 vocab=True),
        NameRule(mcore=_LAYER + "input_layernorm.weight", hf=(_HF + "input_layernorm.weight",),
                 fused=True),
        *_attention_rules(model),
        *_norms_before_mlp(model),
        *_mlp_rules(model),
        *(_expert_rules(model, experts) if model.experts else ()),
        NameRule(mcore="decoder.final_layernorm.weight", hf=("model.norm.weight",)),
    ]  # fmt: skip
    if model.post_norms:
        rows += [
            NameRule(mcore=_LAYER + "self_attention.linear_proj.post_layernorm.weight",
                     hf=(_HF + "post_attention_layernorm.weight",)),
            NameRule(mcore=_LAYER + "mlp.linear_fc2.post_layernorm.weight",
                     hf=(_HF + "post_feedforward_layernorm.weight",)),
        ]  # fmt: skip
    if not model.tie_word_embeddings:
        rows.append(NameRule(mcore="output_layer.weight", hf=("lm_head.weight",), vocab=True))
    return tuple(dataclasses.replace(row, stacked=not model.is_mixed) for row in rows)
