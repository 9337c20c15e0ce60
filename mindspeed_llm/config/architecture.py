"""Owns Megatron's architecture flags as statements about the checkpoint's model, and their check
against it; knows neither how a model is built nor where its config.json lies.

The architecture is always the checkpoint's. A flag that agrees with it changes nothing, one that
contradicts it is an error that names both values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from mindspeed_llm.config.flags import flag_of, setting
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchitectureFlags:
    """Statements about the model; read from the checkpoint, checked when given"""

    num_layers: int | None = setting(None, help="decoder layers")
    hidden_size: int | None = setting(None, help="width of the residual stream")
    ffn_hidden_size: int | None = setting(None, help="width of the MLP")
    num_attention_heads: int | None = setting(None, help="query heads")
    group_query_attention: bool = setting(False, help="fewer key/value heads than query heads")
    num_query_groups: int | None = setting(None, help="key/value heads")
    kv_channels: int | None = setting(None, help="size of a head")
    max_position_embeddings: int | None = setting(None, help="longest context of the model")
    normalization: str | None = setting(None, choices=("LayerNorm", "RMSNorm"), help="kind of norm")
    norm_epsilon: float | None = setting(None, help="epsilon of the norms")
    add_rmsnorm_offset: bool = setting(False, help="norm weights are stored minus one")
    position_embedding_type: str | None = setting(
        None, choices=("learned_absolute", "rope", "none"), help="kind of positions"
    )
    rotary_base: float | None = setting(None, help="base of the rotary positions")
    swiglu: bool = setting(False, help="gated MLP with SiLU")
    geglu: bool = setting(False, help="gated MLP with GELU")
    attn_logit_softcapping: float | None = setting(None, help="soft cap of attention scores")
    output_logit_softcapping: float | None = setting(None, help="soft cap of output logits")
    query_pre_attn_scalar: float | None = setting(
        None, help="attention scores are divided by its square root"
    )
    interleave_sliding_window: int | None = setting(
        None, help="window of every other layer, tokens"
    )
    post_norm: bool = setting(False, help="norms after attention and MLP as well")
    qk_layernorm: bool = setting(False, help="norms of queries and keys")
    input_embeds_norm: bool = setting(False, help="embeddings are scaled by sqrt(hidden size)")
    add_qkv_bias: bool = setting(False, help="query, key and value projections have a bias")
    disable_bias_linear: bool = setting(False, help="MLP and output projections have no bias")
    untie_embeddings_and_output_weights: bool = setting(False, help="a separate output matrix")
    num_experts: int | None = setting(None, help="routed experts of a layer")
    moe_router_topk: int | None = setting(None, help="experts that a token goes to")
    moe_ffn_hidden_size: int | None = setting(
        None, aliases=("--moe-intermediate-size",), help="width of an expert"
    )
    moe_router_pre_softmax: bool = setting(
        False, help="experts are weighted by a softmax over all of them"
    )
    norm_topk_prob: bool = setting(
        False, help="the weights of the experts that a token goes to sum to 1"
    )
    vocab_size: int | None = setting(None, help="tokens of the vocabulary, without padding")
    padded_vocab_size: int | None = setting(None, help="rows of the embedding as trained")
    make_vocab_size_divisible_by: int | None = setting(
        None, help="the padded vocabulary divided by TP is a multiple of it"
    )

    def check(self, model: ModelConfig, parallel: ParallelConfig) -> None:
        """Raise ConfigError if a given flag contradicts `model` as `parallel` lays it out."""
        truth = dict(_facts(model, parallel))
        wrong = []
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given is None or given is False or field.name not in truth:
                continue
            found = truth[field.name]
            if not _equal(given, found):
                wrong.append(_sentence(field.name, given, found))
        rows = parallel.padded_vocab_size(model.vocab_size)
        unit = (self.make_vocab_size_divisible_by or 1) * parallel.tensor_model_parallel_size
        if self.make_vocab_size_divisible_by is not None and rows % unit:
            wrong.append(
                f"--make-vocab-size-divisible-by {self.make_vocab_size_divisible_by} x TP "
                f"{parallel.tensor_model_parallel_size} does not divide the {rows} rows"
            )
        if wrong:
            raise ConfigError(
                f"the checkpoint's {model.family} model contradicts the flags: "
                + "; ".join(wrong)
                + ". Drop the flag, since the architecture is read from --load, or load the "
                "model that was meant"
            )


def _facts(model: ModelConfig, parallel: ParallelConfig) -> Iterator[tuple[str, Any]]:
    """(flag's field name, what the checkpoint says) for every flag that states a value.

    --make-vocab-size-divisible-by states a divisor and is checked apart.
    """
    for name in (
        "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
        "max_position_embeddings", "norm_epsilon", "qkv_bias", "vocab_size",
    ):  # fmt: skip
        yield ("add_" if name == "qkv_bias" else "") + name, getattr(model, name)
    yield "group_query_attention", model.num_query_groups < model.num_attention_heads
    yield "kv_channels", model.head_dim
    yield "normalization", "RMSNorm"
    yield "add_rmsnorm_offset", model.zero_centered_norm
    yield "position_embedding_type", "rope"
    yield "rotary_base", model.rope.theta
    yield "swiglu", model.activation == "silu"
    yield "geglu", model.activation in ("gelu", "gelu_tanh")
    yield "attn_logit_softcapping", model.attention_softcap
    yield "output_logit_softcapping", model.logit_softcap
    scale = model.attention_scale
    yield "query_pre_attn_scalar", model.head_dim if scale is None else scale**-2
    alternates = "sliding" in model.layer_types
    yield "interleave_sliding_window", model.sliding_window if alternates else None
    yield "post_norm", model.post_norms
    yield "qk_layernorm", model.qk_norm
    yield "input_embeds_norm", model.embedding_scale is not None
    yield "disable_bias_linear", not (model.mlp_bias or model.output_bias)
    yield "untie_embeddings_and_output_weights", not model.tie_word_embeddings
    experts = model.experts
    yield "num_experts", None if experts is None else experts.num_experts
    yield "moe_router_topk", None if experts is None else experts.top_k
    yield "moe_ffn_hidden_size", None if experts is None else experts.ffn_hidden_size
    yield "moe_router_pre_softmax", experts is not None and not experts.renormalized
    yield "norm_topk_prob", experts is not None and experts.renormalized
    yield "padded_vocab_size", parallel.padded_vocab_size(model.vocab_size)


def _equal(given: Any, found: Any) -> bool:
    if isinstance(given, float) and found is not None:
        return math.isclose(given, found, rel_tol=1e-6)
    return given == found


def _sentence(name: str, given: Any, found: Any) -> str:
    if given is True:
        return f"{flag_of(name)} is given, and the model is not so"
    return f"{flag_of(name)} is {given}, the model has {'none' if found is None else found}"
