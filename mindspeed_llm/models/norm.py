"""Owns RMSNorm as a module that megatron-core accepts in place of its own; the arithmetic is
in `kernels`."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.device.detect import detect
from mindspeed_llm.kernels.table import kernel
from mindspeed_llm.models.decoder_config import DecoderConfig


class RMSNorm(torch.nn.Module):
    """RMSNorm over the last dimension, [..., h] -> [..., h], in float32 inside.

    megatron-core's torch norm refuses sequence parallelism and weights stored as w and applied as
    1 + w; this one has both. The weight is marked `sequence_parallel`, upon which
    `finalize_model_grads` sums its gradient over the tensor-parallel ranks.

    Args:
        config: its `layernorm_zero_centered_gamma`, `sequence_parallel`, `params_dtype` and, if it
            is a DecoderConfig, `kernel_device` are read; else it is this machine's device.
        hidden_size: h.
        eps: added to the mean square.
        persist_layer_norm, zero_centered_gamma, normalization: part of the interface of
            megatron-core's norms, which fill them from `config`; not read.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-6,
        persist_layer_norm: bool = False,
        zero_centered_gamma: bool = False,
        normalization: str = "RMSNorm",
    ) -> None:
        super().__init__()
        self.epsilon = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        fill = torch.zeros if self.zero_centered else torch.ones
        self.weight = torch.nn.Parameter(fill(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel
        self._norm = kernel(
            "rms_norm",
            config.kernel_device if isinstance(config, DecoderConfig) else detect().kind,
            dtype=config.params_dtype,
            zero_centered=self.zero_centered,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised x, [..., h], in x's dtype."""
        return self._norm(x, self.weight, self.epsilon, zero_centered=self.zero_centered)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{tuple(self.weight.shape)}, eps={self.epsilon}, 1+w={self.zero_centered}"
