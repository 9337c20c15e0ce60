"""Owns adapters that put our kernels into the layers of models that are built with megatron-core's
own specifications; the register explains each. Attention is in `attention`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mindspeed_llm.kernels.activation import gelu_tanh
from mindspeed_llm.kernels.dispatch import fall_back
from mindspeed_llm.kernels.table import fused, kernel

_kernel = functools.cache(fused)
_exact = functools.cache(kernel)


def norm(original: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """WrappedTorchNorm.__new__ that makes our RMSNorm; LayerNorm and what it refuses stay."""

    @functools.wraps(original)
    def new(
        cls: type, config: Any, hidden_size: int, eps: float = 1e-5, *rest: Any, **named: Any
    ) -> torch.nn.Module:
        refused = config.persist_layer_norm or config.memory_efficient_layer_norm
        if config.normalization != "RMSNorm" or refused:
            return original(cls, config, hidden_size, eps, *rest, **named)
        # Late: this module is loaded while megatron-core imports its layers, our norm needs them.
        from mindspeed_llm.models.norm import RMSNorm

        return RMSNorm(config, hidden_size, eps)

    return new


def gated_mlp(original: Callable[..., Any]) -> Callable[..., Any]:
    """MLP.forward whose gate and up projection meet in one kernel, experts' with their weight; an
    MLP without a gate gets the exact GELU on an NPU, where F.gelu is not."""

    @functools.wraps(original)
    def forward(
        self: Any, hidden_states: torch.Tensor, per_token_scale: Any = None, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        device, dtype = hidden_states.device.type, hidden_states.dtype
        op = gate(self.config)
        product = None if op is None else _kernel(op, device, dtype=dtype)
        if product is None:
            if device == "npu" and self.config.gated_linear_unit:
                fall_back(f"a gated MLP of {self.config.activation_func} is megatron-core's own")
            elif device == "npu" and self.activation_func is F.gelu:
                # It would be tanh there. bias_activation_fusion, which is, does not come by it.
                self.activation_func = _exact("gelu_erf", device, dtype=dtype)
            return original(self, hidden_states, per_token_scale, **named)
        both, bias = self.linear_fc1(hidden_states)
        middle = product(both if bias is None else both + bias)
        if per_token_scale is not None:
            middle = (middle * per_token_scale.unsqueeze(-1)).to(middle.dtype)
        output, output_bias = self.linear_fc2(middle)
        if per_token_scale is not None and output_bias is not None:  # an expert adds its own
            output = output + output_bias * per_token_scale.unsqueeze(-1)
            output_bias = None
        return output, output_bias

    return forward


def gate(config: Any) -> str | None:
    """Operation of the kernel table that a gated MLP of `config` is; None where there is none.

    megatron-core's F.gelu is the exact one, and the tanh approximation with bias_activation_fusion.
    """
    others = (
        getattr(config, "use_te_activation_func", False),
        getattr(config, "activation_func_clamp_value", None) is not None,
        getattr(config, "glu_linear_offset", 0.0) != 0.0,
        config.activation_func_fp8_input_store,
        config.cpu_offloading,
    )
    if not config.gated_linear_unit or any(others):
        return None
    function = config.activation_func
    if isinstance(function, functools.partial) and not function.args:
        known = function.func is F.gelu and function.keywords == {"approximate": "tanh"}
        function = gelu_tanh if known else None
    exact = "geglu_tanh" if config.bias_activation_fusion else "geglu_erf"
    return {F.silu: "swiglu", gelu_tanh: "geglu_tanh", F.gelu: exact}.get(function)
