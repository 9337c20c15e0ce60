"""Owns the sizes of a model's tensors, from the architecture alone: no module is built for them."""

from __future__ import annotations

import math

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.models.names import NameRule, expand
from mindspeed_llm.models.registry import rules_of


def mcore_shape(rule: NameRule, model: ModelConfig) -> tuple[int, ...]:
    """Shape of the whole Megatron-Core tensor of `rule` in one process, vocabulary unpadded."""
    hidden, ffn, dim = model.hidden_size, model.ffn_hidden_size, model.head_dim
    if rule.experts and model.experts is not None:
        ffn = model.experts.ffn_hidden_size
    heads, qkv = model.num_attention_heads * dim, _qkv_rows(model)
    module, _, part = rule.mcore.rpartition(".")
    name = module.rpartition(".")[2]
    if name.endswith("layernorm"):
        return (dim,) if name in ("q_layernorm", "k_layernorm") else (hidden,)
    if name == "router":
        assert model.experts is not None
        return (model.experts.num_experts, hidden)
    rows, columns = {
        "word_embeddings": (model.vocab_size, hidden),
        "output_layer": (model.vocab_size, hidden),
        "linear_qkv": (qkv, hidden),
        "linear_proj": (hidden, heads),
        "linear_fc1": (2 * ffn, hidden),
        "linear_fc2": (hidden, ffn),
    }[name]
    return (rows, columns) if part == "weight" else (rows,)


def _qkv_rows(model: ModelConfig) -> int:
    return (model.num_attention_heads + 2 * model.num_query_groups) * model.head_dim


def count_parameters(model: ModelConfig) -> int:
    """Parameters of `model` as its Hugging Face checkpoint has them: a tied embedding once, no
    padding of the vocabulary."""
    rules = expand(rules_of(model), model.num_layers)
    return sum(math.prod(mcore_shape(rule, model)) for rule in rules)


def local_shape(rule: NameRule, model: ModelConfig, parallel: ParallelConfig) -> tuple[int, ...]:
    """Shape of one tensor-parallel rank's part of the tensor of `rule`, vocabulary padded."""
    shape, tp = mcore_shape(rule, model), parallel.tensor_model_parallel_size
    if rule.experts:
        tp = parallel.expert_tensor_size
    if rule.vocab:
        return (parallel.padded_vocab_size(shape[0]) // tp, *shape[1:])
    module, _, part = rule.mcore.rpartition(".")
    name = module.rpartition(".")[2]
    if name in ("linear_qkv", "linear_fc1"):  # column parallel: rows are split
        return (shape[0] // tp, *shape[1:])
    if name in ("linear_proj", "linear_fc2") and part == "weight":  # row parallel: columns are
        return (shape[0], shape[1] // tp)
    return shape


def stage_shapes(
    model: ModelConfig, parallel: ParallelConfig, stage: int, *, of_experts: bool | None = None
) -> list[tuple[int, ...]]:
    """Shapes of all parameters of one rank of pipeline stage `stage` (0-based).

    The last stage of a tied model has a copy of the embedding for its output layer.

    Args:
        of_experts: only those of experts, or only the others; None: all.
    """
    last = parallel.pipeline_model_parallel_size - 1
    layers = parallel.layers_of(model.num_layers, stage)
    out = []
    for rule in rules_of(model):
        if of_experts is not None and bool(rule.experts) is not of_experts:
            continue
        shape = local_shape(rule, model, parallel)
        if rule.per_layer:
            each = rule.experts // parallel.expert_model_parallel_size if rule.experts else 1
            out += [shape] * (each * sum(map(rule.is_in, layers)))
        elif rule.mcore.startswith("embedding."):
            copies = 2 if 0 < last and stage == last and model.tie_word_embeddings else 1
            out += [shape] * (copies if stage == 0 else copies - 1)
        elif stage == last:
            out.append(shape)
    return out
