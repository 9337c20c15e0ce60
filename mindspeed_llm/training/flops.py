"""Owns the arithmetic that a batch asks of a model: multiplications and additions of its matrices,
forward and backward. Knows neither devices nor times.

Counted is what is needed, as for model FLOPs utilisation (PaLM, appendix B): real tokens only, the
output layer for supervised positions only, the experts that a token goes to, attention within
sequences, causal and within windows; nothing for recomputation, norms, softmax or the optimizer.
"""

from __future__ import annotations

import math

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.models.names import expand
from mindspeed_llm.models.registry import rules_of
from mindspeed_llm.models.shapes import mcore_shape
from mindspeed_llm.training.batch import MicroBatch


class Work:
    """Operations of forward and backward pass over the whole model, however it is cut.

    Args:
        trains_weights: the weights have gradients too, not only what flows through them (full
            tuning; adapters and frozen layers go without, and their own operations are not
            counted).
    """

    def __init__(self, model: ModelConfig, *, trains_weights: bool) -> None:
        self._model = model
        self._passes = 3 if trains_weights else 2
        experts = model.experts
        routed = 1.0 if experts is None else experts.top_k / experts.num_experts
        self._weights = sum(
            math.prod(mcore_shape(rule, model)) * (routed if rule.experts else 1.0)
            for rule in expand(rules_of(model), model.num_layers)
            if ".layers." in rule.mcore and len(mcore_shape(rule, model)) == 2
        )

    def of(self, batch: MicroBatch) -> float:
        """Operations of one micro-batch, one multiplication and addition counting as two."""
        model = self._model
        through_output = 2 * model.hidden_size * model.vocab_size * batch.supervised
        # A context-parallel rank counts its own targets; the rest is counted by the first one.
        spans = batch.spans if batch.real_tokens else ()
        through_layers = 2 * self._weights * sum(spans)
        pairs = 0
        for layer in range(model.num_layers):
            window = model.sliding_window if model.is_sliding(layer) else None
            pairs += sum(_pairs(span, window) for span in spans)
        attention = 4 * model.num_attention_heads * model.head_dim * pairs
        return float(self._passes * (through_output + through_layers + attention))


def _pairs(length: int, window: int | None) -> int:
    """Queries times the keys each of them sees, itself included."""
    seen = length if window is None else min(length, window)
    return seen * (seen + 1) // 2 + (length - seen) * seen
