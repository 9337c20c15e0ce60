"""Owns the linear layers of our decoders where megatron-core's do not do: biases of some layers
only, a norm behind a row-parallel layer, a place for an adapter, and the gated MLP between two of
them. It knows no attention and no checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules

from mindspeed_llm.kernels.activation import GATED
from mindspeed_llm.kernels.table import kernel
from mindspeed_llm.models.decoder_config import DecoderConfig
from mindspeed_llm.models.norm import RMSNorm

# megatron-core has one switch, add_bias_linear, for the biases of all linear layers. Llama has one
# for attention and one for the MLP, Qwen2 a bias on q, k, v alone: each class asks the model.


class _Adaptable:
    """Before a parallel linear layer in the bases of a class: its `adapter`, a module or None, is
    given the layer's input and adds to its output, before a norm that stands behind the layer."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_module("adapter", None)

    def forward(self, input_: torch.Tensor, *args: Any, **options: Any) -> tuple[Any, Any]:
        """As the layer itself: its input -> (output, bias)."""
        output, bias = super().forward(input_, *args, **options)
        return output if self.adapter is None else output + self.adapter(input_), bias

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The layer's, and the adapter's own, which alone knows how it is split over ranks."""
        whole = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.adapter is None:
            return whole
        inner = f"{prefix}adapter."
        kept = {name: tensor for name, tensor in whole.items() if not name.startswith(inner)}
        return kept | self.adapter.sharded_state_dict(inner, sharded_offsets, metadata)


class QKVLinear(_Adaptable, ColumnParallelLinear):
    """Projection to queries, keys and values: [s, b, h] -> [s, b, (n + 2g) d / tp]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.qkv_bias, **options)


class GateUpLinear(_Adaptable, ColumnParallelLinear):
    """First linear layer of the MLP, gate and up projection in one: [s, b, h] -> [s, b, 2f/tp]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.mlp_bias, **options)


class OutputLinear(_Adaptable, RowParallelLinear):
    """Output projection of attention: [s, b, n d / tp] -> [s, b, h]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.output_bias, **options)


class DownLinear(_Adaptable, RowParallelLinear):
    """Last linear layer of the MLP: [s, b, f / tp] -> [s, b, h]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.mlp_bias, **options)


class PostNormRowParallelLinear(_Adaptable, RowParallelLinear):
    """Row-parallel layer with an RMSNorm over its summed output (Gemma 2 and 3).

    megatron-core's TransformerLayer has no place for a norm between a sub-layer and the residual
    sum. The norm is per token, so it may stand behind the reduction, with sequence parallelism on
    this rank's tokens. Its weight is `<layer>.post_layernorm.weight` in the state dict and, in a
    sharded state dict, `decoder.layers.self_attention.linear_proj.post_layernorm.weight` and
    `decoder.layers.mlp.linear_fc2.post_layernorm.weight`, replicated over tensor-parallel ranks.
    A bias would have to be added before the norm; the families that have such norms have no bias.
    """

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        model = config.decoder
        assert not model.output_bias and not model.mlp_bias, f"{model.family}: bias before a norm"
        super().__init__(*sizes, config=config, bias=False, **options)
        self.post_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[s, b, k / tp] -> ([s, b, h], no bias); s is this rank's share with sequence parallel."""
        output, _ = super().forward(input_)
        return self.post_layernorm(output), None


class GatedMLP(MLP):
    """megatron-core's MLP whose gate and up projection meet in one kernel.

    megatron-core has one for SwiGLU and one for quick GELU, and a seam for others only beside
    Transformer Engine. Its specifications take a class as it is, so the layers are chosen here.
    """

    def __init__(self, config: DecoderConfig, pg_collection: Any = None, **options: Any) -> None:
        # From 0.18 on TransformerLayer gives every kind of MLP the same, experts' among it.
        options.pop("is_mtp_layer", None)
        if pg_collection is not None:
            options["tp_group"] = pg_collection.tp
        down = PostNormRowParallelLinear if config.decoder.post_norms else DownLinear
        layers = MLPSubmodules(linear_fc1=GateUpLinear, linear_fc2=down)
        super().__init__(config, layers, **options)
        self._gated = kernel(
            GATED[config.decoder.activation], config.kernel_device, dtype=config.params_dtype
        )

    def forward(
        self, hidden_states: torch.Tensor, **_unused: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[s, b, h] -> ([s, b, h], bias of the last layer)."""
        both, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(self._gated(both if bias is None else both + bias))
