"""Owns the parallel layout and its arithmetic; knows neither process groups nor models' weights."""

from __future__ import annotations

import dataclasses

from mindspeed_llm.config.flags import setting
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Parallel layout"""

    tensor_model_parallel_size: int = setting(1, help="tensor-parallel ranks (TP)")
    pipeline_model_parallel_size: int = setting(1, help="pipeline stages (PP)")
    sequence_parallel: bool = setting(False, help="shard activations between TP regions (SP)")

    def __post_init__(self) -> None:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}; expected 1 or more")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ConfigError("--sequence-parallel needs --tensor-model-parallel-size 2 or more")

    def data_parallel_size(self, world_size: int) -> int:
        """Data-parallel ranks in `world_size` processes.

        Raises:
            ConfigError: the world is not a multiple of TP x PP.
        """
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        if world_size % (tp * pp):
            raise ConfigError(
                f"{world_size} processes do not divide into TP {tp} x PP {pp} = {tp * pp}; "
                f"start a multiple of {tp * pp} processes or change the layout"
            )
        return world_size // (tp * pp)

    def check_model(self, model: ModelConfig) -> None:
        """Raise ConfigError unless `model` can be cut this way; names the flag and both numbers."""
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        for what, size in (
            ("attention heads", model.num_attention_heads),
            ("query groups (key/value heads)", model.num_query_groups),
            ("ffn hidden size", model.ffn_hidden_size),
        ):
            if size % tp:
                raise ConfigError(
                    f"--tensor-model-parallel-size {tp} does not divide the model's {size} {what}; "
                    f"use one of {_divisors(size, 16)}"
                )
        if model.num_layers % pp:
            raise ConfigError(
                f"--pipeline-model-parallel-size {pp} does not divide the model's "
                f"{model.num_layers} layers; use one of {_divisors(model.num_layers, 16)}"
            )

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Smallest multiple of TP that holds `vocab_size`; the extra rows never get probability."""
        tp = self.tensor_model_parallel_size
        return -(-vocab_size // tp) * tp


def _divisors(number: int, limit: int) -> list[int]:
    return [d for d in range(1, min(number, limit) + 1) if number % d == 0]
