"""Owns the description of a decoder that every family is reduced to; knows neither Hugging Face nor
megatron-core: families fill it from config.json, `models` turns it into modules."""

from __future__ import annotations

import dataclasses
from typing import Literal

from mindspeed_llm.errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """One rotary embedding.

    `scaling` is None, or Llama 3.1's frequency bands (`llama3`), or positions divided by `factor`
    (`linear`), or for slow frequencies only, with a ramp between those that turn `beta_slow` and
    `beta_fast` times within `original_max_position` (`yarn`), or Phi-3's divisors of single
    frequencies (`longrope`): `short_factors` for sequences up to `original_max_position`,
    `long_factors` beyond, one a frequency. The fields after it are only read by the kind that has
    them.
    """

    theta: float
    scaling: Literal["llama3", "linear", "yarn", "longrope"] | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    whole_dimensions: bool = True  # the ends of the ramp are rounded outwards (yarn's truncate)
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    amplitude: float = 1.0  # multiplies cosine and sine (the attention factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Routed experts, which stand for the MLP in `layers` (0-based, ascending).

    Each token goes to `top_k` of `num_experts` gated MLPs of width `ffn_hidden_size`. What they say
    is weighted by the softmax of the router's logits: over all experts, or, where `renormalized`,
    over those chosen.
    """

    num_experts: int
    top_k: int
    ffn_hidden_size: int
    renormalized: bool
    layers: tuple[int, ...]

    def check(self, family: str, num_layers: int) -> None:
        """Raise ModelError for sizes that make no sense."""
        for name in ("num_experts", "top_k", "ffn_hidden_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ModelError(f"{family}: {name} is {value!r}; expected an integer >= 1")
        if self.top_k > self.num_experts:
            raise ModelError(f"{family}: {self.top_k} experts a token of {self.num_experts}")
        if self.renormalized and self.top_k == 1:
            raise ModelError(
                f"{family}: one expert a token, weighted by a softmax over it alone: always 1, "
                "whatever the router says, which could not be trained; not supported"
            )
        if not self.layers or list(self.layers) != sorted({*self.layers} & {*range(num_layers)}):
            raise ModelError(f"{family}: experts in layers {self.layers} of {num_layers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with RMSNorm, rotary positions and gated MLPs or routed experts.

    Sizes are element counts; `sliding_window` counts the keys a query sees, itself included
    (Hugging Face's meaning); soft caps are the cap value c of c * tanh(x / c).
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    activation: Literal["silu", "gelu_tanh", "gelu"]
    tie_word_embeddings: bool
    rope: RopeConfig
    rope_local: RopeConfig | None = None  # of sliding layers, where they differ (Gemma3)
    rotary_dim: int | None = None  # leading dimensions of a head that turn; None: all
    layer_types: tuple[Literal["full", "sliding"], ...] = ()  # one a layer; () means all full
    sliding_window: int | None = None
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float | None = None  # rounded to the embedding's dtype before use, as in HF
    zero_centered_norm: bool = False  # weight stored as w, applied as 1 + w (Gemma)
    post_norms: bool = False  # norms after attention and MLP as well (Gemma2, Gemma3)
    qk_norm: bool = False  # RMSNorm over head_dim of queries and keys (Gemma3, Qwen3)
    qkv_bias: bool = False
    output_bias: bool = False  # bias of the attention output projection
    mlp_bias: bool = False
    experts: ExpertsConfig | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the stored weights

    def __post_init__(self) -> None:
        for name in (
            "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads",
            "num_query_groups", "head_dim", "vocab_size", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ModelError(f"{self.family}: {name} is {value!r}; expected an integer >= 1")
        if self.num_attention_heads % self.num_query_groups:
            raise ModelError(
                f"{self.family}: {self.num_attention_heads} attention heads are not a multiple of "
                f"{self.num_query_groups} key/value heads"
            )
        if not 0 < self.turning_dim <= self.head_dim or self.turning_dim % 2:
            raise ModelError(
                f"{self.family}: {self.rotary_dim} of a head's {self.head_dim} dimensions turn; "
                "expected an even number of at most all of them"
            )
        if self.layer_types and len(self.layer_types) != self.num_layers:
            raise ModelError(
                f"{self.family}: {len(self.layer_types)} layer types for {self.num_layers} layers"
            )
        if "sliding" in self.layer_types and not self.sliding_window:
            raise ModelError(f"{self.family}: sliding layers without a sliding window")
        if self.experts is not None:
            self.experts.check(self.family, self.num_layers)
            if self.mlp_bias or self.post_norms:
                raise ModelError(f"{self.family}: experts with biases, or with norms behind them")

    @property
    def turning_dim(self) -> int:
        """Leading dimensions of queries and keys that the rotary embedding turns."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def is_same_but_for_dtype(self, other: ModelConfig) -> bool:
        """Whether the weights of one fit the other."""
        return dataclasses.replace(self, dtype=other.dtype) == other

    def is_sliding(self, layer: int) -> bool:
        """Whether layer `layer` (0-based, global) attends within the sliding window."""
        return bool(self.layer_types) and self.layer_types[layer] == "sliding"

    def is_sparse(self, layer: int) -> bool:
        """Whether layer `layer` (0-based, global) has routed experts instead of an MLP."""
        return self.experts is not None and layer in self.experts.layers

    @property
    def is_mixed(self) -> bool:
        """Whether some layers have routed experts and others an MLP."""
        return self.experts is not None and len(self.experts.layers) < self.num_layers

    def rope_of(self, layer: int) -> RopeConfig:
        """Rotary embedding of layer `layer` (0-based, global)."""
        return self.rope_local if self.rope_local and self.is_sliding(layer) else self.rope
