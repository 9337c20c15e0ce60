"""Owns the way from a ModelConfig to a megatron-core GPTModel; knows no weights and no files."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.models.decoder_config import DecoderConfig, transformer_config
from mindspeed_llm.models.layers import RotaryTables, layer_spec
from mindspeed_llm.models.norm import RMSNorm

__all__ = ["DecoderConfig", "build_model", "transformer_config"]


@dataclasses.dataclass(frozen=True)
class ScaleEmbedding:
    """Forward hook on the embedding: multiplies its output by `scale`, rounded to its dtype."""

    scale: float

    def __call__(
        self, _module: torch.nn.Module, _inputs: Any, output: torch.Tensor
    ) -> torch.Tensor:
        """Scaled [s, b, h]. A hook and not the weight, which a tied output layer uses as it is."""
        return output * torch.tensor(self.scale, dtype=output.dtype, device=output.device)


@dataclasses.dataclass(frozen=True)
class FinishLogits:
    """Forward hook on the output layer: soft cap, then -inf where the vocabulary is padding.

    Attributes:
        softcap: c of c * tanh(x / c), or None.
        vocab_size: tokens that exist.
        padded_vocab_size: rows of the output layer over all tensor-parallel ranks.
    """

    softcap: float | None
    vocab_size: int
    padded_vocab_size: int

    def __call__(
        self, _module: torch.nn.Module | None, _inputs: Any, output: tuple[torch.Tensor, Any]
    ) -> tuple[torch.Tensor, Any]:
        """Finished logits [s, b, v]; v is the padded vocabulary, or this rank's part of it."""
        logits, bias = output
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        size = logits.shape[-1]
        rank = parallel_state.get_tensor_model_parallel_rank()
        first = 0 if size == self.padded_vocab_size else rank * size
        if first + size > self.vocab_size:
            token = torch.arange(first, first + size, device=logits.device)
            logits = logits.masked_fill(token >= self.vocab_size, -math.inf)
        return logits, bias


def build_model(
    model: ModelConfig,
    parallel: ParallelConfig,
    *,
    dtype: torch.dtype,
    pre_process: bool | None = None,
    post_process: bool | None = None,
    parallel_output: bool = True,
    chunk: int | None = None,
    **overrides: Any,
) -> GPTModel:
    """This rank's part of `model`, with megatron-core's parallel groups already initialised.

    Args:
        model: the architecture.
        parallel: the layout; its sizes must be those of the initialised groups.
        dtype: of parameters and activations.
        pre_process: whether this stage has the embedding; None: the first pipeline stage has.
        post_process: whether it has final norm and output layer; None: the last stage has.
        parallel_output: logits stay split over tensor-parallel ranks along the vocabulary.
        chunk: of an interleaved pipeline: which of this rank's chunks (megatron-core's vp_stage).
        overrides: see `transformer_config`; `perform_initialization=False` leaves memory as it
            comes, for weights that are loaded at once.

    Returns:
        A GPTModel on the CPU (or on the device of an active `torch.device` context, "meta"
        included). Logits are soft-capped and -inf for padding of the vocabulary. It decodes with
        megatron-core's StaticInferenceContext, any number of new tokens at a time.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    config = transformer_config(model, parallel, dtype=dtype, **overrides)
    stage = {} if chunk is None else {"ignore_virtual": False, "vp_stage": chunk}
    first = parallel_state.is_pipeline_first_stage(**stage) if pre_process is None else pre_process
    last = parallel_state.is_pipeline_last_stage(**stage) if post_process is None else post_process
    which = {} if chunk is None else {"vp_stage": chunk}
    begin = get_transformer_layer_offset(config, **which)
    layers = range(begin, begin + get_num_layers_to_build(config, **which))
    padded = parallel.padded_vocab_size(model.vocab_size)
    gpt = GPTModel(
        config,
        TransformerBlockSubmodules(
            layer_specs=[layer_spec(model, layer) for layer in layers],
            layer_norm=RMSNorm if last else None,
        ),
        vocab_size=padded,
        max_sequence_length=model.max_position_embeddings,
        pre_process=first,
        post_process=last,
        parallel_output=parallel_output,
        share_embeddings_and_output_weights=model.tie_word_embeddings,
        position_embedding_type="rope",
        **which,
    )
    gpt.rotary_pos_emb = RotaryTables(config)
    if first and model.embedding_scale is not None:
        gpt.embedding.register_forward_hook(ScaleEmbedding(model.embedding_scale))
    if last:
        # Both are kept for a loss that computes no logits.
        gpt.finish_logits = FinishLogits(model.logit_softcap, model.vocab_size, padded)
        gpt.finish_logits_hook = gpt.output_layer.register_forward_hook(gpt.finish_logits)
    if not config.perform_initialization:
        _mark_parallel(gpt)
    return gpt


def _mark_parallel(gpt: GPTModel) -> None:
    """Mark the parameters that are split over tensor-parallel ranks.

    megatron-core does this while it initialises them; without initialisation the marks are missing
    and gradient norms would count one rank's part of each.
    """
    for module in gpt.modules():
        if isinstance(module, tensor_parallel.RowParallelLinear):
            split = [(module.weight, 1)]
        elif isinstance(
            module, tensor_parallel.ColumnParallelLinear | tensor_parallel.VocabParallelEmbedding
        ):
            split = [(module.weight, 0)]
        else:
            continue
        for weight, dim in split:
            if weight is not None and not hasattr(weight, "tensor_model_parallel"):
                tensor_parallel.set_tensor_model_parallel_attributes(weight, True, dim, 1)
