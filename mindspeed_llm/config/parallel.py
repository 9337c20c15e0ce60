"""Owns the parallel layout and its arithmetic; knows neither process groups nor models' weights."""

from __future__ import annotations

import dataclasses
import math

from mindspeed_llm.config.flags import at_least, flag_of, setting
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.errors import ConfigError

_CHUNKS = ("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank")
_UNEVEN = ("num_layer_list", "decoder_first_pipeline_num_layers",
           "decoder_last_pipeline_num_layers")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Parallel layout"""

    tensor_model_parallel_size: int = setting(1, help="tensor-parallel ranks (TP)")
    pipeline_model_parallel_size: int = setting(1, help="pipeline stages (PP)")
    sequence_parallel: bool = setting(False, help="shard activations between TP regions (SP)")
    num_layers_per_virtual_pipeline_stage: int | None = setting(
        None, help="interleaved pipeline: layers of each of a rank's chunks of the model (VPP)"
    )
    num_virtual_stages_per_pipeline_rank: int | None = setting(
        None, help="the same said as the number of chunks of each rank"
    )
    num_layer_list: str | None = setting(
        None, metavar="N,N,...", help="layers of each pipeline stage, where they are not equal"
    )
    decoder_first_pipeline_num_layers: int | None = setting(
        None, help="layers of the first stage; the others share the rest"
    )
    decoder_last_pipeline_num_layers: int | None = setting(
        None, help="layers of the last stage; the others share the rest"
    )
    context_parallel_size: int = setting(1, help="ranks that share the tokens of each row (CP)")
    cp_comm_type: str | None = setting(
        None,
        choices=("all_gather",),
        help="how CP ranks exchange keys and values: always by all-gather",
    )
    context_parallel_algo: str | None = setting(
        None, choices=("kvallgather_cp_algo",), help="MindSpeed's name for the same"
    )
    expert_model_parallel_size: int = setting(
        1, help="ranks that share the experts of a layer (EP), tensor- and data-parallel ones"
    )
    expert_tensor_parallel_size: int | None = setting(
        None, help="tensor-parallel ranks of each expert: 1, or TP, which is the default"
    )

    def __post_init__(self) -> None:
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size",
                     "context_parallel_size", "expert_model_parallel_size"):  # fmt: skip
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}; expected 1 or more")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ConfigError("--sequence-parallel needs --tensor-model-parallel-size 2 or more")
        self._check_stages()
        for name in ("cp_comm_type", "context_parallel_algo"):
            if getattr(self, name) is not None and self.context_parallel_size == 1:
                raise ConfigError(
                    f"{flag_of(name)} has no effect without --context-parallel-size 2 or more; "
                    "drop it"
                )
        tp, etp = self.tensor_model_parallel_size, self.expert_tensor_parallel_size
        if etp not in (None, 1, tp):
            raise ConfigError(f"--expert-tensor-parallel-size is {etp}; expected 1 or TP, {tp}")
        if self.expert_tensor_size < tp and self.expert_model_parallel_size % tp:
            raise ConfigError(
                f"--expert-tensor-parallel-size 1 spreads whole experts over the {tp} "
                "tensor-parallel ranks; give --expert-model-parallel-size a multiple of them"
            )

    @property
    def expert_tensor_size(self) -> int:
        """Tensor-parallel ranks of each expert."""
        return self.expert_tensor_parallel_size or self.tensor_model_parallel_size

    @property
    def replica_size(self) -> int:
        """Processes that together hold the whole model once."""
        experts = self.expert_tensor_size * self.expert_model_parallel_size
        others = self.tensor_model_parallel_size * self.context_parallel_size
        return self.pipeline_model_parallel_size * math.lcm(others, experts)

    def _check_stages(self) -> None:
        given = [name for name in (*_CHUNKS, *_UNEVEN) if getattr(self, name) is not None]
        at_least(self, 1, *(name for name in given if name != "num_layer_list"))
        if given and self.pipeline_model_parallel_size == 1:
            raise ConfigError(
                f"{flag_of(given[0])} has no effect without --pipeline-model-parallel-size 2 or "
                "more; drop it"
            )
        ends = {"decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"}
        if len(given) > 1 and not set(given) <= ends:
            raise ConfigError(
                f"{flag_of(given[0])} and {flag_of(given[1])} both say which stage has which "
                "layers; give one of them"
            )
        if self.num_layer_list is not None:
            words = self.num_layer_list.split(",")
            if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
                raise ConfigError(
                    f"--num-layer-list is {self.num_layer_list!r}; expected the layers of each "
                    "pipeline stage, 1 or more, such as 3,1"
                )
            if len(words) != self.pipeline_model_parallel_size:
                raise ConfigError(
                    f"--num-layer-list {self.num_layer_list} has {len(words)} stages, but "
                    f"--pipeline-model-parallel-size is {self.pipeline_model_parallel_size}"
                )

    def data_parallel_size(self, world_size: int) -> int:
        """Data-parallel ranks in `world_size` processes; ranks that share experts count as such.

        Raises:
            ConfigError: the world is not a multiple of TP x PP x CP, or experts do not fit it.
        """
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        cp = self.context_parallel_size
        size, cut = tp * pp * cp, f" x CP {cp}" if cp > 1 else ""
        if world_size % size:
            raise ConfigError(
                f"{world_size} processes do not divide into TP {tp} x PP {pp}{cut} = {size}; "
                f"start a multiple of {size} processes or change the layout"
            )
        if world_size % self.replica_size:
            ep, etp = self.expert_model_parallel_size, self.expert_tensor_size
            raise ConfigError(
                f"{world_size} processes do not divide into EP {ep} x {etp} tensor-parallel ranks "
                f"of an expert x PP {pp}; start a multiple of {self.replica_size} processes or "
                "change the layout"
            )
        return world_size // size

    def check_model(self, model: ModelConfig) -> None:
        """Raise ConfigError unless `model` can be cut this way; names the flag and both numbers."""
        tp = self.tensor_model_parallel_size
        self._check_experts(model)
        widths = [
            ("attention heads", model.num_attention_heads),
            ("query groups (key/value heads)", model.num_query_groups),
        ]
        if model.experts is None or model.is_mixed:
            widths.append(("ffn hidden size", model.ffn_hidden_size))
        for what, size in widths:
            if size % tp:
                raise ConfigError(
                    f"--tensor-model-parallel-size {tp} does not divide the model's {size} {what}; "
                    f"use one of {_divisors(size, 16)}"
                )
        self.stage_layers(model.num_layers)
        self.virtual_stages(model.num_layers)

    @property
    def is_interleaved(self) -> bool:
        """Whether a flag gives each pipeline rank several chunks of the model."""
        return any(getattr(self, name) is not None for name in _CHUNKS)

    @property
    def is_uneven(self) -> bool:
        """Whether a flag gives stages different numbers of layers."""
        return any(getattr(self, name) is not None for name in _UNEVEN)

    def stage_layers(self, num_layers: int) -> list[int]:
        """Layers of each pipeline stage of a model of `num_layers`.

        Raises:
            ConfigError: they do not add up.
        """
        pp = self.pipeline_model_parallel_size
        if self.num_layer_list is not None:
            layers = [int(word) for word in self.num_layer_list.split(",")]
            if sum(layers) != num_layers:
                raise ConfigError(
                    f"--num-layer-list {self.num_layer_list} has {sum(layers)} layers, and the "
                    f"model has {num_layers}"
                )
            return layers
        first = self.decoder_first_pipeline_num_layers
        last = self.decoder_last_pipeline_num_layers
        fixed = [part for part in (first, last) if part is not None]
        rest, stages = num_layers - sum(fixed), pp - len(fixed)
        if not fixed and rest % stages:
            raise ConfigError(
                f"--pipeline-model-parallel-size {pp} does not divide the model's {num_layers} "
                f"layers; use one of {_divisors(num_layers, 16)}, or --num-layer-list"
            )
        if rest < stages or (rest % stages if stages else rest):
            raise ConfigError(
                f"--decoder-first/last-pipeline-num-layers leave {rest} of the model's "
                f"{num_layers} layers to {stages} stages, which cannot have as many each; change "
                "them or use --num-layer-list"
            )
        middle = [rest // stages] * stages if stages else []
        return [*([] if first is None else [first]), *middle, *([] if last is None else [last])]

    def layers_of(self, num_layers: int, stage: int) -> list[int]:
        """The layers (0-based, ascending) of pipeline stage `stage` of a model of `num_layers`.

        Raises:
            ConfigError: see `stage_layers` and `virtual_stages`.
        """
        each, chunks = self.stage_layers(num_layers), self.virtual_stages(num_layers)
        share = num_layers // chunks  # of interleaved stages: what one round of the ranks has
        begin, size = sum(each[:stage]) // chunks, each[stage] // chunks
        return [c * share + begin + i for c in range(chunks) for i in range(size)]

    def virtual_stages(self, num_layers: int) -> int:
        """Chunks of the model on each pipeline rank: 1 unless the pipeline is interleaved.

        Raises:
            ConfigError: the layers of a rank cannot be cut so.
        """
        name = next((name for name in _CHUNKS if getattr(self, name) is not None), None)
        if name is None:
            return 1
        given, layers = getattr(self, name), self.stage_layers(num_layers)[0]
        parts = layers // given if name == _CHUNKS[0] else given
        if layers % given or parts < 2:
            raise ConfigError(
                f"{flag_of(name)} {given} does not cut the {layers} layers of a pipeline stage "
                "into two or more equal chunks; change or drop it"
            )
        return parts

    @property
    def length_multiple(self) -> int:
        """Every row must have a multiple of this many tokens: CP and SP cut it."""
        shards = self.tensor_model_parallel_size if self.sequence_parallel else 1
        return self.context_parallel_size * shards

    def _check_experts(self, model: ModelConfig) -> None:
        ep, etp, experts = (
            self.expert_model_parallel_size, self.expert_tensor_size, model.experts)  # fmt: skip
        if experts is None:
            if ep > 1 or self.expert_tensor_parallel_size is not None:
                flag = "model" if ep > 1 else "tensor"
                raise ConfigError(
                    f"--expert-{flag}-parallel-size: this {model.family} model has no experts; "
                    "drop it"
                )
            return
        if experts.num_experts % ep:
            raise ConfigError(
                f"--expert-model-parallel-size {ep} does not divide the model's "
                f"{experts.num_experts} experts; use one of {_divisors(experts.num_experts, 16)}"
            )
        if experts.ffn_hidden_size % etp:
            raise ConfigError(
                f"the width {experts.ffn_hidden_size} of an expert does not divide by {etp} "
                "tensor-parallel ranks; give --expert-tensor-parallel-size 1 or another TP"
            )

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Smallest multiple of TP that holds `vocab_size`; the extra rows never get probability."""
        tp = self.tensor_model_parallel_size
        return -(-vocab_size // tp) * tp


def _divisors(number: int, limit: int) -> list[int]:
    return [d for d in range(1, min(number, limit) + 1) if number % d == 0]
