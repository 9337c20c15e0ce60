"""Owns the megatron-core configuration of our decoders and the facts about megatron-core's versions
that building one needs. Layers read it; it knows no layer."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Container
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.config.model import ExpertsConfig, ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.kernels.activation import ACTIVATIONS

# Off unless asked for: each needs apex, Transformer Engine, CUDA kernels or torch.compile. Megatron
# versions differ in which of them exist; one that a version lacks cannot be on there either.
_OFF = (
    "apply_rope_fusion",
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "fused_single_qkv_rope",
    "gradient_accumulation_fusion",
    "masked_softmax_fusion",
    "persist_layer_norm",
    "use_te_activation_func",
)


@dataclasses.dataclass
class DecoderConfig(TransformerConfig):
    """megatron-core's TransformerConfig and, in `model`, all that it has no field for.

    `kernel_device` is where the model will run, "npu", "cuda" or "cpu": its modules choose their
    kernels for it when they are built, wherever their weights are then.
    """

    model: ModelConfig | None = None
    kernel_device: str = "cpu"

    @property
    def decoder(self) -> ModelConfig:
        """`model`, which every configuration made by `transformer_config` has."""
        assert self.model is not None, "make a DecoderConfig with transformer_config(...)"
        return self.model


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, *, dtype: torch.dtype, **overrides: Any
) -> DecoderConfig:
    """megatron-core configuration of `model` cut as `parallel` says.

    Args:
        model: the architecture.
        parallel: the layout; it must fit (`ParallelConfig.check_model`).
        dtype: of parameters and activations: float32, bfloat16 or float16.
        overrides: `kernel_device`, and TransformerConfig fields of the installed megatron-core,
            e.g. `recompute_granularity`, `perform_initialization`, `deterministic_mode`.

    Returns:
        A configuration that is safe without CUDA, apex and Transformer Engine; it can be copied
        and pickled.

    Raises:
        ConfigError: the layout does not fit the model.
        TypeError: an override that the installed megatron-core does not know.
    """
    parallel.check_model(model)
    known = inspect.signature(DecoderConfig).parameters
    _check_stages(parallel, known)
    fields: dict[str, Any] = {name: False for name in _OFF if name in known}
    fields |= {
        "model": model,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.norm_epsilon,
        "layernorm_zero_centered_gamma": model.zero_centered_norm,
        "qk_layernorm": model.qk_norm,
        "gated_linear_unit": True,
        "activation_func": ACTIVATIONS[model.activation],
        "add_bias_linear": False,  # biases are chosen per linear layer, see models.layers
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        **_stage_fields(model, parallel),
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "use_cpu_initialization": True,
    }
    if model.experts is not None:
        fields |= _expert_fields(model, model.experts, parallel)
    return DecoderConfig(**(fields | overrides))


def _expert_fields(
    model: ModelConfig, experts: ExpertsConfig, parallel: ParallelConfig
) -> dict[str, Any]:
    return {
        "num_moe_experts": experts.num_experts,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        # A list means: each layer has a name of its own in checkpoints.
        "moe_layer_freq": [int(model.is_sparse(i)) for i in range(model.num_layers)]
        if model.is_mixed
        else 1,
        "moe_router_topk": experts.top_k,
        "moe_router_pre_softmax": not experts.renormalized,
        "moe_router_dtype": "fp32",
        # The balancing loss is ours, see `models.experts`: megatron-core's counts padding.
        "moe_router_load_balancing_type": "none",
        # Ranks may have batches of different lengths, which the other dispatcher cannot take.
        "moe_token_dispatcher_type": "alltoall",
        "expert_model_parallel_size": parallel.expert_model_parallel_size,
        "expert_tensor_parallel_size": parallel.expert_tensor_size,
    }


def _stage_fields(model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """Which layers a pipeline stage has, where it is not one run of as many as any other."""
    chunks = parallel.virtual_stages(model.num_layers)
    if chunks > 1:
        return {
            "virtual_pipeline_model_parallel_size": chunks,
            # Two messages to one peer in a batch pair up in the wrong order when there are two
            # stages, so each is sent by itself; gloo sends from a buffer that must not be freed.
            "overlap_p2p_comm": True,
            "batch_p2p_comm": False,
            "deallocate_pipeline_outputs": False,
        }
    if not parallel.is_uneven:
        return {}
    stages = [["decoder"] * count for count in parallel.stage_layers(model.num_layers)]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return {"pipeline_model_parallel_layout": stages}


def _check_stages(parallel: ParallelConfig, known: Container[str]) -> None:
    """Raise ConfigError where the installed megatron-core is too old for these stages."""
    if "pipeline_model_parallel_layout" not in known and (
        parallel.is_interleaved or parallel.is_uneven
    ):
        raise ConfigError(
            "virtual stages and stages of different numbers of layers need megatron-core 0.14 or "
            "newer; install one, or give each pipeline rank as many layers"
        )
