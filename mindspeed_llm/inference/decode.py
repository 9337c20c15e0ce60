"""Owns one step of this rank's layers over the new tokens of many sequences: the arithmetic of the
modules in `models`, written down layer by layer on their weights. It knows no sampling.

Tokens of all sequences lie one behind the other, [t, h]: linear layers run over all of them at
once, attention runs a sequence at a time over its own memory. Sequences need no common length, and
one may bring a part of its prompt while others bring one token each.

megatron-core's modules do the same for sequences of one length; the calls they make for one token
(groups, contexts, fusions that do not apply) cost a small model on a CPU as much as its matrices.

Attention, rotation and the gate are kernels of the table. On a CPU rotation and the gate are
written out here: gradients, which the kernels provide for, are not needed, and calls are what
costs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel

from mindspeed_llm.inference.matrix import Matrix
from mindspeed_llm.inference.memory import KeyValues, Shape
from mindspeed_llm.kernels.activation import GATED
from mindspeed_llm.kernels.table import kernel
from mindspeed_llm.models.norm import RMSNorm

_Map = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """What one layer needs, in the order it needs it."""

    norm: _Map
    qkv: Matrix
    query_norm: _Map | None
    key_norm: _Map | None
    table: int
    window: int | None
    scale: float
    attend: Callable[..., torch.Tensor]
    out: Matrix
    out_norm: _Map | None
    mlp_norm: _Map
    gate_up: Matrix | None
    down: Matrix | None
    down_norm: _Map | None
    experts: torch.nn.Module | None


class Step:
    """New tokens of any number of sequences, on top of what their memory holds.

    Args:
        model: this stage's part, in evaluation mode, without adapters. Its matrices become this
            step's own: see `Matrix` for when the modules cannot run any more.
        context: longest sequence in positions.
    """

    def __init__(self, model: GPTModel, context: int) -> None:
        adapted = any(getattr(module, "adapter", None) is not None for module in model.modules())
        assert not adapted, "merge the adapter: a step runs on the weights alone"
        self.model, self.context, own = model, context, model.config.decoder
        self.device: str = model.config.kernel_device
        self.is_cpu = self.device == "cpu"
        self.ranks = parallel_state.get_tensor_model_parallel_world_size()
        self.groups = own.num_query_groups // self.ranks
        self.head_dim, self.turning = own.head_dim, own.turning_dim
        self.queries = own.num_attention_heads // own.num_query_groups
        self.amplitude, self.softcap = own.rope.amplitude, own.attention_softcap
        self.tables = 1 if own.rope_local is None else 2
        dtype = model.config.params_dtype
        if self.is_cpu:
            self.gated: _Map = functools.partial(_gated, model.config.activation_func)
        else:
            self.gated = kernel(GATED[own.activation], self.device, dtype=dtype)
            self.rotate = kernel("rotary", self.device, dtype=dtype, head_dim=self.turning)
        self.layers = [self._layer(layer) for layer in model.decoder.layers]
        self.vocabulary: Matrix | None = None
        if model.post_process:
            self.final_norm = _norm(model.decoder.final_layernorm)
            tied = model.share_embeddings_and_output_weights and model.pre_process
            layer = model.embedding.word_embeddings if tied else model.output_layer
            self.vocabulary = Matrix(layer.weight, shared=tied)

    def shape(self, device: torch.device) -> Shape:
        """What the memory of a sequence has to look like."""
        return Shape(
            windows=tuple(layer.window for layer in self.layers), groups=self.groups,
            head_dim=self.head_dim, limit=self.context, dtype=self.model.config.params_dtype,
            device=device,
        )  # fmt: skip

    def _layer(self, layer: torch.nn.Module) -> _Layer:
        attention_, mlp = layer.self_attention, layer.mlp
        core, own = attention_.core_attention, self.model.config.decoder
        sliding = own.is_sliding(layer.layer_number - 1)

        def matrix(module: torch.nn.Module) -> Matrix:
            return Matrix(module.weight, getattr(module, "bias", None))

        def behind(module: torch.nn.Module) -> _Map | None:
            norm = getattr(module, "post_layernorm", None)
            return None if norm is None else _norm(norm)

        def of_heads(module: torch.nn.Module | None) -> _Map | None:
            return _norm(module) if isinstance(module, RMSNorm) else None

        sparse = not hasattr(mlp, "linear_fc1")
        return _Layer(
            norm=_norm(layer.input_layernorm),
            qkv=matrix(attention_.linear_qkv),
            query_norm=of_heads(attention_.q_layernorm),
            key_norm=of_heads(attention_.k_layernorm),
            table=1 if self.tables == 2 and sliding else 0,
            window=core.window,
            scale=core.scale,
            attend=kernel(
                "decode_attention",
                self.device,
                dtype=self.model.config.params_dtype,
                head_dim=self.head_dim,
                window=core.window,
                softcap=self.softcap,
            ),
            out=matrix(attention_.linear_proj),
            out_norm=behind(attention_.linear_proj),
            mlp_norm=_norm(layer.pre_mlp_layernorm),
            gate_up=None if sparse else matrix(mlp.linear_fc1),
            down=None if sparse else matrix(mlp.linear_fc2),
            down_norm=None if sparse else behind(mlp.linear_fc2),
            experts=mlp if sparse else None,
        )

    def __call__(
        self,
        ids: torch.Tensor,
        parts: Sequence[tuple[KeyValues, int]],
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run this stage's layers.

        Args:
            ids: int64 [t], new tokens of all sequences; only the first stage reads them.
            parts: each sequence's memory and how many of the tokens are its own, in their order.
            hidden: [t, h] of the stage before; None on the first.

        Returns:
            [t, h], before the final norm.
        """
        device = ids.device
        positions = torch.cat([
            torch.arange(held.length, held.length + count, device=device) for held, count in parts
        ])  # fmt: skip
        x = hidden
        if x is None:
            x = self.model.embedding(ids[None], positions[None])[:, 0]
        views = [held.open(count) for held, count in parts]
        turns = self._turns(positions, x.dtype)
        counts = [count for _, count in parts]
        for at, layer in enumerate(self.layers):
            mixed = self._mixed(layer, layer.norm(x), turns[layer.table])
            found = self._attend(layer, mixed, counts, [view[at] for view in views])
            x = self._added(x, found, layer.out, layer.out_norm)
            y = layer.mlp_norm(x)
            if layer.gate_up is None or layer.down is None:  # routing is megatron-core's
                assert layer.experts is not None
                x = x + layer.experts(y[:, None])[0][:, 0]
                continue
            x = self._added(x, self.gated(layer.gate_up(y)), layer.down, layer.down_norm)
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[n, vocabulary] of [n, h]; the last stage's."""
        assert self.vocabulary is not None, "the last stage has the vocabulary"
        found = self.vocabulary(self.final_norm(x))
        if self.ranks > 1:
            found = tensor_parallel.gather_from_tensor_model_parallel_region(found)
        return self.model.finish_logits(None, None, (found, None))[0]

    def _added(
        self, x: torch.Tensor, y: torch.Tensor, matrix: Matrix, norm: _Map | None
    ) -> torch.Tensor:
        """x plus a row-parallel layer of y, its norm between them where there is one."""
        if self.ranks == 1 and norm is None:
            return matrix.added(x, y)
        if self.ranks == 1:
            y = matrix(y)
        else:
            y = tensor_parallel.reduce_from_tensor_model_parallel_region(matrix.alone(y))
            y = y if matrix.bias is None else y + matrix.bias
        return x + (y if norm is None else norm(y))

    def _turns(self, positions: torch.Tensor, dtype: torch.dtype) -> list[_Map]:
        """For each rotary table what turns [t, g, queries + 2, d] at these positions."""
        angles = self.model.rotary_pos_emb(self.context)[:, 0, 0][positions]
        found: list[_Map] = []
        for angle in angles.chunk(self.tables, dim=-1):
            if not self.is_cpu:
                found.append(functools.partial(self._turned, angle[:, None, None]))
                continue
            # Factors of a head as it is and with its halves exchanged: values stand still, so that
            # one product turns all there is.
            shape = (len(positions), 1, self.queries + 2, self.turning)
            stay = torch.ones(shape, dtype=dtype, device=positions.device)
            swap = torch.zeros_like(stay)
            sin = angle.sin()
            sin = torch.cat((-sin[:, : self.turning // 2], sin[:, self.turning // 2 :]), dim=-1)
            stay[:, :, :-1] = angle.cos().to(dtype)[:, None, None]
            swap[:, :, :-1] = sin.to(dtype)[:, None, None]
            if self.amplitude != 1.0:
                # Longrope's factor of queries and of keys; only their product is seen.
                stay[:, :, : self.queries] *= self.amplitude**2
                swap[:, :, : self.queries] *= self.amplitude**2
            found.append(functools.partial(_turned, stay, swap))
        return found

    def _turned(self, angle: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        moving, value = mixed.split([self.queries + 1, 1], dim=2)
        # longrope's factor of queries and of keys, outside cosine and sine
        return torch.cat((self.rotate(moving, angle, scale=self.amplitude), value), dim=2)

    def _mixed(self, layer: _Layer, x: torch.Tensor, turn: _Map) -> torch.Tensor:
        """[t, h] -> [t, g, queries + 2, d], megatron-core's order: for each group its queries, its
        key, its value; queries and keys normed and turned."""
        mixed = layer.qkv(x).view(-1, self.groups, self.queries + 2, self.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key, value = mixed.split([self.queries, 1, 1], dim=2)
            mixed = torch.cat((layer.query_norm(query), layer.key_norm(key), value), dim=2)
        return turn(mixed)

    def _attend(
        self,
        layer: _Layer,
        mixed: torch.Tensor,
        counts: list[int],
        views: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """[t, g, queries + 2, d] -> [t, heads * d]; keys and values join their memory."""
        found = []
        for own, (fresh, keys, values) in zip(mixed.split(counts), views, strict=True):
            fresh.copy_(own[:, :, self.queries :].permute(2, 1, 0, 3))
            query = own[:, :, : self.queries]
            if len(own) > 1 or not self.is_cpu:
                query = query.reshape(len(own), 1, -1, self.head_dim)
                keys, values = keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)
                part = layer.attend(query, keys, values, scale=layer.scale, window=layer.window,
                                    softcap=self.softcap)[:, 0]  # fmt: skip
            elif self.softcap is None:
                # A group's queries are the rows of one product: no key is repeated or copied.
                part = F.scaled_dot_product_attention(query, keys, values, scale=layer.scale)
            else:
                scores = torch.matmul(query, keys.transpose(-1, -2)).float()
                scores = torch.tanh(scores * (layer.scale / self.softcap)) * self.softcap
                part = torch.matmul(scores.softmax(-1).to(values.dtype), values)
            found.append(part.reshape(len(own), -1))
        return found[0] if len(found) == 1 else torch.cat(found)


def _gated(activation: _Map, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return activation(gate) * up


def _turned(stay: torch.Tensor, swap: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    turning = stay.shape[-1]
    moving = mixed if turning == mixed.shape[-1] else mixed[..., :turning]
    turned = moving * stay + moving.roll(turning // 2, -1) * swap
    if turning == mixed.shape[-1]:
        return turned
    return torch.cat((turned, mixed[..., turning:]), dim=-1)


def _norm(module: RMSNorm) -> _Map:
    """The norm as a function; on a CPU torch's own does the arithmetic, one call instead of five.

    In half precision it is done in float32 and rounded where the module rounds, which is where
    transformers does: before a plain weight, after a zero-centred one.
    """
    weight, eps, zero_centered = module.weight.detach(), module.epsilon, module.zero_centered
    if weight.device.type != "cpu":
        return module
    shape, kind = weight.shape, weight.dtype
    if zero_centered:
        factor = 1.0 + weight.float()
        return lambda x: F.rms_norm(x.float(), shape, factor, eps).to(kind)
    if kind is torch.float32:
        return lambda x: F.rms_norm(x, shape, weight, eps)
    return lambda x: weight * F.rms_norm(x.float(), shape, None, eps).to(kind)
