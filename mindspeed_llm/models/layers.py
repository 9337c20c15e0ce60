"""Owns attention, rotary tables and the layer specification of our decoders as megatron-core
modules; the arithmetic is in `kernels`, the names of the weights are in `family`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.inference.contexts import BaseInferenceContext
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from mindspeed_llm.config.model import ModelConfig, RopeConfig
from mindspeed_llm.kernels.context_parallel import (
    Share,
    gathered_order,
    local_positions,
    share_attention,
    shares,
)
from mindspeed_llm.kernels.rotary import (
    angles,
    inverse_frequencies,
    llama3_frequencies,
    longrope_frequencies,
    yarn_frequencies,
)
from mindspeed_llm.kernels.table import kernel
from mindspeed_llm.models.decoder_config import DecoderConfig
from mindspeed_llm.models.linear import (
    DownLinear,
    GatedMLP,
    GateUpLinear,
    OutputLinear,
    PostNormRowParallelLinear,
    QKVLinear,
)
from mindspeed_llm.models.norm import RMSNorm

CACHE_BLOCK = 256  # positions by which the KV cache grows
_BOUNDS = "mindspeed_llm_bounds"  # attribute of a PackedSeqParams


def frequencies(rope: RopeConfig, dim: int, *, long: bool = False) -> torch.Tensor:
    """Inverse frequencies of `rope`, float32 [dim / 2], bit-equal to transformers'.

    Args:
        rope: the rotary embedding.
        dim: dimensions of a head that turn.
        long: longrope's frequencies for sequences beyond `original_max_position`.
    """
    if rope.scaling == "longrope":
        factors = rope.long_factors if long else rope.short_factors
        return longrope_frequencies(dim, rope.theta, factors)
    if rope.scaling == "linear":
        return inverse_frequencies(dim, rope.theta, factor=rope.factor)
    if rope.scaling == "yarn":
        return yarn_frequencies(
            dim,
            rope.theta,
            factor=rope.factor,
            original_max_position=rope.original_max_position,
            beta_fast=rope.beta_fast,
            beta_slow=rope.beta_slow,
            whole_dimensions=rope.whole_dimensions,
        )
    plain = inverse_frequencies(dim, rope.theta)
    if rope.scaling is None:
        return plain
    return llama3_frequencies(
        plain,
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position=rope.original_max_position,
    )


class RotaryTables(RotaryEmbedding):
    """Rotary angles for all layers of a model: [s, 1, 1, d], or [s, 1, 1, 2d] when sliding layers
    have a base of their own (Gemma 3): the full layers' table, then the sliding layers'.

    megatron-core hands one tensor to all layers; `DecoderSelfAttention` takes its own half. d is
    `ModelConfig.turning_dim`. Longrope's long frequencies serve all positions of a sequence that
    is longer than the original context, as in transformers; with a KV cache it is the cache's size
    that counts, so that keys which are stored turned stay right while the conversation grows.
    """

    def __init__(self, config: DecoderConfig, **groups: Any) -> None:
        model = config.decoder
        super().__init__(model.head_dim, 1.0, use_cpu_initialization=True, **groups)
        dim, longrope = model.turning_dim, model.rope.scaling == "longrope"
        ropes = [model.rope] if model.rope_local is None else [model.rope, model.rope_local]
        rows = [frequencies(rope, dim) for rope in ropes]
        if longrope:
            assert model.rope_local is None, f"{model.family}: longrope beside a second base"
            rows.append(frequencies(model.rope, dim, long=True))
        self.inv_freq = torch.stack(rows)
        self._short = model.rope.original_max_position if longrope else None
        self._tables: dict[bool, torch.Tensor] = {}

    def _apply(self, fn: Any, recurse: bool = True) -> RotaryTables:
        """Follow the model to its device, but stay float32 when the model is cast."""
        self.inv_freq = self.inv_freq.to(fn(self.inv_freq).device)
        self._tables = {}
        return super()._apply(fn, recurse)

    def forward(self, max_seq_len: int, offset: int = 0, **groups: Any) -> torch.Tensor:
        """Angles of positions 0 .. max_seq_len - 1, every table side by side; the longest stays.

        With context parallelism, too: attention takes the positions that its rank has.
        """
        assert offset == 0, "positions start at 0"
        rows, long = self.inv_freq, self._short is not None and max_seq_len > self._short
        if self._short is not None:
            rows = rows[1:] if long else rows[:1]
        if long not in self._tables or self._tables[long].shape[0] < max_seq_len:
            self._tables[long] = torch.cat([angles(max_seq_len, row) for row in rows], dim=-1)
        return self._tables[long][:max_seq_len]


class CoreAttention(MegatronModule):
    """Causal softmax attention with sliding window, soft cap and grouped queries, by the kernels
    that are chosen here for whole rows, packed rows and cached keys.

    Replaces megatron-core's DotProductAttention, which has no soft cap, lets a window replace the
    mask instead of adding to it, and cannot take several new tokens on top of cached keys.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        **groups: Any,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self" and attn_mask_type is AttnMaskType.causal
        model = config.decoder
        sliding = model.is_sliding(layer_number - 1)
        self.window = model.sliding_window if sliding else None
        self.softcap = model.attention_softcap
        scale = model.attention_scale if softmax_scale is None else softmax_scale
        self.scale = model.head_dim**-0.5 if scale is None else scale
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.dropout = dropout
        need = {"dtype": config.params_dtype, "head_dim": model.head_dim, "window": self.window,
                "softcap": self.softcap}  # fmt: skip
        self._attention, self._packed = (
            kernel(op, config.kernel_device, dropout=dropout, **need)
            for op in ("attention", "packed_attention")
        )
        self._decode = kernel("decode_attention", config.kernel_device, **need)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """[sq, b, n, d], [sk, b, g, d] twice -> [sq, b, n * d], heads of this rank.

        `attention_mask` is megatron-core's: boolean, broadcastable to [b, 1, sq, sk], True where a
        key is hidden; causality and window hold besides it, for cached keys as well, whatever
        `attn_mask_type` says.

        With `packed_seq_params` (format thd) it is [t, n, d], [t, g, d] twice -> [t, n * d], and
        no sequence sees another.

        With context parallelism these are the tokens of this rank's `Share`, and the boundaries
        of packed sequences those of the whole row. Keys and values of all ranks are gathered, and
        their gradients are reduce-scattered.

        Raises:
            ValueError: an attention bias, or packed sequences of another format, with a mask
                besides, or with keys cut at other places than queries.
        """
        if attention_bias is not None:
            raise ValueError("this attention takes no attention bias")
        dropout = self.dropout if self.training else 0.0
        # Heads are spread over TP ranks: each must draw its own mask. With sequence parallelism
        # the whole layer already runs under the tracker.
        own = dropout > 0 and not self.config.sequence_parallel
        fork = tensor_parallel.get_cuda_rng_tracker().fork if own else contextlib.nullcontext
        how = {"scale": self.scale, "window": self.window, "softcap": self.softcap,
               "dropout": dropout}  # fmt: skip
        with fork():
            if self.config.context_parallel_size > 1:
                return _over_ranks(self._attention, query, key, value, attention_mask,
                                   packed_seq_params, how)  # fmt: skip
            if packed_seq_params is None:
                cached = len(query) < len(key) and not torch.is_grad_enabled()
                attend = self._decode if cached else self._attention
                return attend(query, key, value, hidden=attention_mask, **how)
            if attention_mask is not None:
                raise ValueError("packed sequences take no attention mask besides")
            bounds = boundaries(packed_seq_params)
            return self._packed(query, key, value, cu_seqlens=bounds, **how)


def _over_ranks(
    attention: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    packed: PackedSeqParams | None,
    how: dict[str, Any],
) -> torch.Tensor:
    """Attention of a context-parallel rank by the kernel of whole rows, shapes as in
    `CoreAttention.forward`."""
    if mask is not None:
        raise ValueError("context parallelism takes no attention mask")
    share = _own_share(len(query), packed)
    if packed is not None:
        query, key, value = (part.unsqueeze(1) for part in (query, key, value))
    group = parallel_state.get_context_parallel_group()
    both = tensor_parallel.gather_from_sequence_parallel_region(
        torch.cat((key, value), dim=-1), group=group
    )
    order = gathered_order(share.bounds, group.size(), both.device)
    key, value = both.index_select(0, order).split((key.shape[-1], value.shape[-1]), dim=-1)
    out = share_attention(attention, query, key, value, share=share, **how)
    return out if packed is None else out.squeeze(1)


def _own_share(tokens: int, packed: PackedSeqParams | None) -> Share:
    """What this context-parallel rank holds, when it has `tokens` tokens of each row."""
    ranks = parallel_state.get_context_parallel_world_size()
    bounds = (0, tokens * ranks) if packed is None else tuple(boundaries(packed))
    return shares(bounds, ranks)[parallel_state.get_context_parallel_rank()]


def boundaries(packed: PackedSeqParams) -> list[int]:
    """Where the sequences of a packed row begin, and its length; read once for all layers and
    passes of a batch, and kept in `packed`."""
    held = vars(packed).get(_BOUNDS)
    if held is None:
        held = _read_boundaries(packed)
        setattr(packed, _BOUNDS, held)
    return held


def _read_boundaries(packed: PackedSeqParams) -> list[int]:
    if packed.qkv_format != "thd":
        raise ValueError(f"packed sequences have the format {packed.qkv_format!r}; expected 'thd'")
    # The padded boundaries are where the tensors are cut, as in megatron-core's rotary embedding;
    # padding behind a sequence belongs to it, and causal attention never looks there.
    queries, keys = (
        plain if padded is None else padded
        for plain, padded in (
            (packed.cu_seqlens_q, packed.cu_seqlens_q_padded),
            (packed.cu_seqlens_kv, packed.cu_seqlens_kv_padded),
        )
    )
    bounds = queries.tolist()
    if keys is not queries and keys.tolist() != bounds:
        raise ValueError("packed sequences have keys that are cut elsewhere than their queries")
    return bounds


class DecoderSelfAttention(SelfAttention):
    """megatron-core's self-attention with this layer's rotary table, and a KV cache that holds keys
    already turned, so that a decoding step costs one token and not the whole prefix.

    Without a cache it turns queries and keys itself, by our kernel: megatron-core writes the
    rotation out in six operators, and with context parallelism would want every packed sequence
    padded to a multiple of twice the ranks.
    """

    _table: torch.Tensor | None = None

    def __init__(self, config: DecoderConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._rotate = kernel("rotary", config.kernel_device, dtype=config.params_dtype,
                              head_dim=config.decoder.head_dim)  # fmt: skip

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        rotary_pos_emb: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[s, b, h] -> ([s, b, h], bias); `rotary_pos_emb` is what RotaryTables gives."""
        model = self.config.decoder
        if rotary_pos_emb is not None and model.rope_local is not None:
            half = 1 if model.is_sliding(self.layer_number - 1) else 0
            rotary_pos_emb = rotary_pos_emb.chunk(2, dim=-1)[half]
        if rotary_pos_emb is not None and options.get("inference_context") is None:
            tokens = len(hidden_states)
            if self.config.sequence_parallel:
                tokens *= self.config.tensor_model_parallel_size
            share = _own_share(tokens, options.get("packed_seq_params"))
            where = local_positions(share, rotary_pos_emb.device)
            self._table, rotary_pos_emb = rotary_pos_emb.index_select(0, where), None
        return super().forward(
            hidden_states, attention_mask, *args, rotary_pos_emb=rotary_pos_emb, **options
        )

    def get_query_key_value_tensors(self, *args: Any, **options: Any) -> tuple[Any, ...]:
        """megatron-core's, with longrope's and YaRN's amplitude, which its rotation lacks.

        It multiplies cosine and sine of queries and of keys. Only their product is seen, so the
        turning part of the queries takes both factors.
        """
        query, *rest = super().get_query_key_value_tensors(*args, **options)
        model = self.config.decoder
        if model.rope.amplitude != 1.0:
            turning, still = query.split(
                [model.turning_dim, model.head_dim - model.turning_dim], dim=-1
            )
            query = torch.cat((turning * model.rope.amplitude**2, still), dim=-1)
        if self._table is None:
            return query, *rest
        (key, value), table, self._table = rest, self._table, None
        return self._rotate(query, table), self._rotate(key, table), value

    def _adjust_key_value_for_inference(
        self,
        inference_context: BaseInferenceContext | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary_pos_emb: tuple[torch.Tensor, torch.Tensor] | None,
        *args: Any,
        **options: Any,
    ) -> tuple[Any, ...]:
        """Write new keys and values into the static cache and return all up to here.

        Keys are turned before they are stored, whereas megatron-core stores them unturned and turns
        the whole prefix at every step. Positions are absolute, so moving `sequence_len_offset`
        back still drops the end of the cache.
        """
        if inference_context is None or not inference_context.is_static_batching():
            return super()._adjust_key_value_for_inference(
                inference_context, query, key, value, rotary_pos_emb, *args, **options
            )
        start = inference_context.sequence_len_offset
        end, size = start + key.size(0), inference_context.max_sequence_length
        if end > size:
            raise ValueError(f"{end} positions do not fit a KV cache of {size}")
        rows = slice(
            inference_context.batch_size_offset, inference_context.batch_size_offset + key.size(1)
        )
        keys, values = self.room(inference_context, key, value, end)
        if rotary_pos_emb is not None:
            table = rotary_pos_emb[0][start:end]
            key, rotary_pos_emb = self._rotate(key, table), (table, None)
        keys[start:end, rows] = key
        values[start:end, rows] = value
        # The mask type tells CoreAttention nothing: it aligns the queries with the last keys. What
        # follows it differs between versions and is what megatron-core gives without a cache.
        rest = super()._adjust_key_value_for_inference(None, query, key, value, None)[4:]
        return (query, keys[:end, rows], values[:end, rows], rotary_pos_emb, *rest)

    def room(
        self, context: BaseInferenceContext, key: torch.Tensor, value: torch.Tensor, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This layer's cache with room for positions 0 .. end - 1, [at least end, b, g, d] twice.

        It grows by whole blocks and by half, so a short conversation costs little memory and a
        long one few copies; positions beyond those written hold nothing that is ever read.
        """
        cache = context.key_value_memory_dict
        held = cache.get(self.layer_number)
        if held is not None and held[0].size(0) >= end:
            return held
        had = 0 if held is None else held[0].size(0)
        blocks = -(-max(end, had * 3 // 2) // CACHE_BLOCK)
        size = min(blocks * CACHE_BLOCK, context.max_sequence_length)
        shape = (size, context.max_batch_size, *key.shape[2:])
        grown = (key.new_zeros(shape), value.new_zeros(shape))
        if held is not None:
            for new, old in zip(grown, held, strict=True):
                new[:had] = old
        cache[self.layer_number] = grown
        return grown


def layer_spec(model: ModelConfig, layer: int = 0) -> ModuleSpec:
    """megatron-core's TransformerLayer built from the modules here and in `linear` and `norm`, for
    layer `layer` (0-based, global)."""
    qk_norm, sparse = RMSNorm if model.qk_norm else IdentityOp, model.is_sparse(layer)
    attention_spec = ModuleSpec(
        module=DecoderSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=QKVLinear,
            core_attention=CoreAttention,
            linear_proj=PostNormRowParallelLinear if model.post_norms else OutputLinear,
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )
    mlp: ModuleSpec | type = GatedMLP
    if sparse:
        # SequentialMLP makes megatron-core's own MLP of these; `patches.layers` gives it a kernel.
        gated = MLPSubmodules(linear_fc1=GateUpLinear, linear_fc2=DownLinear)
        one_by_one = ModuleSpec(module=SequentialMLP, submodules=gated)
        mlp = ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=one_by_one))
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention_spec,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            # As in megatron-core's own specifications with Transformer Engine, so that checkpoints
            # are interchangeable; `NameRule.fused` says the same.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
            }
            | ({} if sparse else {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}),
        ),
    )
