"""Owns the linear layers of our decoders where megatron-core's do not do: biases of some layers
only, a norm behind a row-parallel layer. It knows no attention and no checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from mindspeed_llm.models.decoder_config import DecoderConfig
from mindspeed_llm.models.norm import RMSNorm

# megatron-core has one switch, add_bias_linear, for the biases of all linear layers. Llama has one
# for attention and one for the MLP, Qwen2 a bias on q, k, v alone: each class asks the model.


class QKVLinear(ColumnParallelLinear):
    """Projection to queries, keys and values: [s, b, h] -> [s, b, (n + 2g) d / tp]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.qkv_bias, **options)


class GateUpLinear(ColumnParallelLinear):
    """First linear layer of the MLP, gate and up projection in one: [s, b, h] -> [s, b, 2f/tp]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.mlp_bias, **options)


class OutputLinear(RowParallelLinear):
    """Output projection of attention: [s, b, n d / tp] -> [s, b, h]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.output_bias, **options)


class DownLinear(RowParallelLinear):
    """Last linear layer of the MLP: [s, b, f / tp] -> [s, b, h]."""

    def __init__(self, *sizes: int, config: DecoderConfig, bias: bool, **options: Any) -> None:
        super().__init__(*sizes, config=config, bias=config.decoder.mlp_bias, **options)


class PostNormRowParallelLinear(RowParallelLinear):
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
