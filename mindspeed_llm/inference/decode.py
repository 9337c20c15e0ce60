"""Owns one decoding step of a whole decoder in few calls: the arithmetic of the modules in
`models`, written down layer by layer on their weights and their KV cache. It knows no sampling.

A step of a small model on a CPU is so short that the calls megatron-core's modules make for one
token (groups, contexts, fusions that do not apply) cost as much as its matrices. Layouts and
devices where that is not so take the modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.gpt import GPTModel

from mindspeed_llm.kernels.rms_norm import rms_norm
from mindspeed_llm.models.norm import RMSNorm

_Norm = Callable[[torch.Tensor], torch.Tensor]


def single_step(model: GPTModel, device: torch.device) -> Step | None:
    """The step of `model`, or None where its modules must do it: split over ranks, with adapters,
    with experts, or not on a CPU."""
    split = (
        parallel_state.get_tensor_model_parallel_world_size() > 1
        or parallel_state.get_pipeline_model_parallel_world_size() > 1
    )
    adapted = any(getattr(module, "adapter", None) is not None for module in model.modules())
    sparse = model.config.decoder.experts is not None
    if split or adapted or sparse or device.type != "cpu":
        return None
    lay_out(model)
    return Step(model)


def lay_out(model: torch.nn.Module) -> None:
    """Turn wide float32 matrices around in memory, so that one token's product runs along them.

    Shapes and values stay. Row by row, a product with one token is one dot product after another,
    which one core does at about half the speed at which it reads memory.
    """
    for weight in model.parameters():
        if (
            weight.dim() == 2
            and weight.dtype is torch.float32
            and weight.shape[0] > weight.shape[1]
        ):
            weight.data = weight.data.t().contiguous().t()


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """What one layer needs, in the order it needs it; weights are the modules' own memory."""

    norm: _Norm
    qkv: tuple[torch.Tensor, torch.Tensor | None]
    query_norm: _Norm | None
    key_norm: _Norm | None
    half: int
    room: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    window: int | None
    scale: float
    out: tuple[torch.Tensor, torch.Tensor | None]
    out_norm: _Norm | None
    mlp_norm: _Norm
    gate_up: tuple[torch.Tensor, torch.Tensor | None]
    down: tuple[torch.Tensor, torch.Tensor | None]
    down_norm: _Norm | None


class Step:
    """One new token for each row, on top of a cache that other steps or the modules have filled.

    Args:
        model: whole, in evaluation mode; its weights may change in place, not be replaced.
    """

    def __init__(self, model: GPTModel) -> None:
        self.model, config = model, model.config
        own = config.decoder
        self.groups, self.head_dim, self.turning = (
            own.num_query_groups, own.head_dim, own.turning_dim)  # fmt: skip
        self.queries = own.num_attention_heads // own.num_query_groups
        self.amplitude, self.softcap = own.rope.amplitude, own.attention_softcap
        self.tables = 1 if own.rope_local is None else 2
        self.activation: Callable[[torch.Tensor], torch.Tensor] = config.activation_func
        self.layers = [self._layer(layer) for layer in model.decoder.layers]

    def _layer(self, layer: torch.nn.Module) -> _Layer:
        attention, mlp = layer.self_attention, layer.mlp
        core, own = attention.core_attention, self.model.config.decoder
        sliding = own.is_sliding(layer.layer_number - 1)

        def weights(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
            return module.weight, getattr(module, "bias", None)

        def behind(module: torch.nn.Module) -> _Norm | None:
            norm = getattr(module, "post_layernorm", None)
            return None if norm is None else _norm(norm)

        def of_heads(module: torch.nn.Module | None) -> _Norm | None:
            return _norm(module) if isinstance(module, RMSNorm) else None

        return _Layer(
            norm=_norm(layer.input_layernorm),
            qkv=weights(attention.linear_qkv),
            query_norm=of_heads(attention.q_layernorm),
            key_norm=of_heads(attention.k_layernorm),
            half=1 if self.tables == 2 and sliding else 0,
            room=attention.room,
            window=core.window,
            scale=core.scale,
            out=weights(attention.linear_proj),
            out_norm=behind(attention.linear_proj),
            mlp_norm=_norm(layer.pre_mlp_layernorm),
            gate_up=weights(mlp.linear_fc1),
            down=weights(mlp.linear_fc2),
            down_norm=behind(mlp.linear_fc2),
        )

    def __call__(self, ids: torch.Tensor, cache: StaticInferenceContext) -> torch.Tensor:
        """Logits [rows, 1, vocabulary] of `ids`, int64 [rows, 1]; the cache's offset is the
        position, and stays as it is."""
        model, at = self.model, cache.sequence_len_offset
        if at >= cache.max_sequence_length:
            raise ValueError(f"{at + 1} positions do not fit a KV cache of {at}")
        x = model.embedding(ids, torch.full_like(ids, at))[0]
        angles = model.rotary_pos_emb(cache.max_sequence_length)[at, 0, 0].chunk(self.tables)
        turns = [(angle.cos().to(x.dtype), angle.sin().to(x.dtype)) for angle in angles]
        for layer in self.layers:
            y = F.linear(self._attend(layer, layer.norm(x), turns[layer.half], cache), *layer.out)
            x = x + (y if layer.out_norm is None else layer.out_norm(y))
            gate, up = F.linear(layer.mlp_norm(x), *layer.gate_up).chunk(2, dim=-1)
            y = F.linear(self.activation(gate) * up, *layer.down)
            x = x + (y if layer.down_norm is None else layer.down_norm(y))
        x = model.decoder.final_layernorm(x)[None]
        tied = model.share_embeddings_and_output_weights
        weight = model.shared_embedding_or_output_weight() if tied else None
        logits, _ = model.output_layer(x, weight=weight)
        return logits.transpose(0, 1)

    def _attend(
        self,
        layer: _Layer,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        cache: StaticInferenceContext,
    ) -> torch.Tensor:
        """[rows, h] -> [rows, heads * d]; keys and values join the cache, keys already turned."""
        rows, at = x.shape[0], cache.sequence_len_offset
        # megatron-core's order: for each group its queries, its key, its value.
        mixed = F.linear(x, *layer.qkv).view(rows, self.groups, self.queries + 2, self.head_dim)
        if layer.query_norm is None or layer.key_norm is None:
            both = mixed[:, :, :-1]
        else:
            query, key = mixed[:, :, : self.queries], mixed[:, :, self.queries : -1]
            both = torch.cat((layer.query_norm(query), layer.key_norm(key)), dim=2)
        if self.amplitude != 1.0:
            # Longrope's factor of queries and of keys; only their product is seen.
            both = both.clone()
            both[:, :, : self.queries, : self.turning] *= self.amplitude**2
        both = self._turned(both, turn)
        query, key = both[:, :, : self.queries], both[:, :, self.queries]
        keys, values = layer.room(cache, key[None], key[None], at + 1)
        keys[at, :rows], values[at, :rows] = key, mixed[:, :, -1]
        first = 0 if layer.window is None else max(0, at + 1 - layer.window)
        keys = keys[first : at + 1, :rows].permute(1, 2, 0, 3)
        values = values[first : at + 1, :rows].permute(1, 2, 0, 3)
        if self.softcap is None:
            found = F.scaled_dot_product_attention(query, keys, values, scale=layer.scale)
        else:
            scores = torch.matmul(query, keys.transpose(-1, -2)).float()
            scores = torch.tanh(scores * (layer.scale / self.softcap)) * self.softcap
            found = torch.matmul(scores.softmax(-1).to(values.dtype), values)
        return found.reshape(rows, -1)

    def _turned(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """x [..., d] with its leading dimensions turned."""
        cos, sin = turn
        moving = x[..., : self.turning]
        first, second = moving.chunk(2, dim=-1)
        turned = moving * cos + torch.cat((-second, first), dim=-1) * sin
        if self.turning == self.head_dim:
            return turned
        return torch.cat((turned, x[..., self.turning :]), dim=-1)


def _norm(module: RMSNorm) -> _Norm:
    """The norm as a function; in float32 torch's own, which is one call instead of six."""
    weight, eps, zero_centered = module.weight, module.epsilon, module.zero_centered
    if weight.dtype is not torch.float32:
        return lambda x: rms_norm(x, weight, eps, zero_centered=zero_centered)
    applied = 1.0 + weight.detach() if zero_centered else weight
    return lambda x: F.rms_norm(x, (x.shape[-1],), applied, eps)
