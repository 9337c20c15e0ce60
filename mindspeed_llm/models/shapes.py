"""Owns the sizes of a model's tensors, from the architecture alone: no module is built for them."""

from __future__ import annotations

import math

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.names import NameRule, expand
from mindspeed_llm.models.registry import rules_of


def mcore_shape(rule: NameRule, model: ModelConfig) -> tuple[int, ...]:
    """Shape of the whole Megatron-Core tensor of `rule` in one process, vocabulary unpadded."""
    hidden, ffn, dim = model.hidden_size, model.ffn_hidden_size, model.head_dim
    heads, qkv = model.num_attention_heads * dim, _qkv_rows(model)
    module, _, part = rule.mcore.rpartition(".")
    name = module.rpartition(".")[2]
    if name.endswith("layernorm"):
        return (dim,) if name in ("q_layernorm", "k_layernorm") else (hidden,)
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
