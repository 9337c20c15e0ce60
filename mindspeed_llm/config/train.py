"""Owns the settings of a training run and the checks that need nothing but themselves; knows
neither files, models, devices nor process groups.

Flags that exist in Megatron-LM or MindSpeed-LLM keep their names and meaning. What is always so
here, and what cannot be honoured, stands in `carried`: no flag is accepted and ignored.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from mindspeed_llm.config.flags import at_least, flag_of, setting
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import (
    CheckpointSettings,
    ControlSettings,
    LogSettings,
    RuntimeSettings,
)
from mindspeed_llm.config.train_data import TrainDataConfig
from mindspeed_llm.config.tuning import TuningSettings
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run does: stage, length, batch, precision, recomputation"""

    stage: str = setting("sft", choices=("sft",), help="kind of training: supervised fine-tuning")
    train_iters: int | None = setting(None, help="optimizer steps in all (or give --epochs)")
    epochs: float | None = setting(None, help="passes over the training rows (or --train-iters)")
    micro_batch_size: int = setting(1, help="rows in one forward pass of one model replica")
    global_batch_size: int | None = setting(
        None, help="rows of one optimizer step; default: micro-batch size x data-parallel ranks"
    )
    seq_length: int = setting(help="longest row in tokens; without --variable-seq-lengths all rows")
    seed: int = setting(1234, help="of the order of rows and of every random number")
    bf16: bool = setting(False, help="bfloat16 weights and activations, fp32 main weights and sums")
    recompute_granularity: str | None = setting(
        None, choices=("full", "selective"), help="recompute activations in the backward pass"
    )
    recompute_method: str | None = setting(
        None, choices=("uniform", "block"), help="of full recomputation: which layers"
    )
    recompute_num_layers: int | None = setting(None, help="of full recomputation: layers a unit")
    attention_dropout: float = setting(0.0, help="share of attention weights dropped")
    hidden_dropout: float = setting(0.0, help="share of each sub-layer's output dropped")

    moe_aux_loss_coeff: float = setting(
        0.0,
        help="weight of each layer's balancing loss of experts beside the cross entropy; 0: none",
    )
    moe_router_load_balancing_type: str | None = setting(
        None, choices=("aux_loss", "none"), help="states what --moe-aux-loss-coeff says"
    )
    moe_token_dispatcher_type: str | None = setting(
        None, choices=("alltoall",), help="states how tokens reach their experts"
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "train_iters", "micro_batch_size", "global_batch_size")
        at_least(self, 2, "seq_length")
        at_least(self, 0, "seed", "moe_aux_loss_coeff")
        if self.seed >= 1 << 31:
            raise ConfigError(f"--seed is {self.seed}; expected less than 2147483648")
        if self.moe_aux_loss_coeff and self.moe_router_load_balancing_type == "none":
            raise ConfigError(
                f"--moe-router-load-balancing-type none contradicts --moe-aux-loss-coeff "
                f"{self.moe_aux_loss_coeff}; drop one of them"
            )
        if (self.train_iters is None) == (self.epochs is None):
            raise ConfigError("give exactly one of --train-iters N and --epochs X")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ConfigError(f"--epochs is {self.epochs}; expected a number above 0")
        for name in ("attention_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{flag_of(name)} is {getattr(self, name)}; expected 0 or more and below 1"
                )
        self._check_recompute()

    def _check_recompute(self) -> None:
        full = self.recompute_granularity == "full"
        if full and (self.recompute_method is None or self.recompute_num_layers is None):
            raise ConfigError(
                "--recompute-granularity full needs --recompute-method uniform|block and "
                "--recompute-num-layers N"
            )
        if not full and (self.recompute_method or self.recompute_num_layers):
            raise ConfigError(
                "--recompute-method and --recompute-num-layers have no effect without "
                "--recompute-granularity full"
            )
        at_least(self, 1, "recompute_num_layers")

    def batch_size(self, data_parallel_size: int) -> int:
        """Rows of one optimizer step.

        Raises:
            ConfigError: it is not a multiple of micro-batch size x data-parallel ranks.
        """
        unit = self.micro_batch_size * data_parallel_size
        rows = self.global_batch_size or unit
        if rows % unit:
            raise ConfigError(
                f"--global-batch-size {rows} is not a multiple of --micro-batch-size "
                f"{self.micro_batch_size} x {data_parallel_size} data-parallel ranks = {unit}; "
                f"use for example {-(-rows // unit) * unit}"
            )
        return rows

    def iterations(self, rows: int, batch_size: int) -> int:
        """Optimizer steps of the run over `rows` training rows; epochs are rounded up."""
        if self.train_iters is not None:
            return self.train_iters
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * rows / batch_size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run was asked to do, checked against itself."""

    train: TrainConfig
    data: TrainDataConfig
    optimizer: OptimizerSettings
    checkpoint: CheckpointSettings
    log: LogSettings
    runtime: RuntimeSettings
    parallel: ParallelConfig
    tuning: TuningSettings = TuningSettings()
    control: ControlSettings = ControlSettings()

    def __post_init__(self) -> None:
        self._check_evaluation()
        length, parallel = self.train.seq_length, self.parallel
        if length % parallel.length_multiple:
            cuts = {
                f"--context-parallel-size {parallel.context_parallel_size}":
                    parallel.context_parallel_size > 1,
                f"--sequence-parallel at --tensor-model-parallel-size "
                f"{parallel.tensor_model_parallel_size}": parallel.sequence_parallel,
            }  # fmt: skip
            raise ConfigError(
                f"--seq-length {length} is not a multiple of {parallel.length_multiple}, into "
                f"which {' and '.join(cut for cut, made in cuts.items() if made)} cut it"
            )

    def check_model(self, model: ModelConfig) -> None:
        """Raise ConfigError unless `model` can be trained at this layout."""
        self.parallel.check_model(model)
        self._check_recomputed(model.num_layers)
        tp = self.parallel.tensor_model_parallel_size
        if model.experts is not None and tp > 1 and not self.parallel.sequence_parallel:
            raise ConfigError(
                f"--tensor-model-parallel-size {tp} with the experts of a {model.family} model "
                "needs --sequence-parallel in training, so that each token is routed once"
            )
        for name in ("moe_aux_loss_coeff", "moe_router_load_balancing_type",
                     "moe_token_dispatcher_type"):  # fmt: skip
            value = getattr(self.train, name)
            if value and model.experts is None:
                raise ConfigError(
                    f"{flag_of(name)} {value}: this {model.family} model has no experts; drop it"
                )
        if not self.train.moe_aux_loss_coeff:
            return
        staged = self.parallel.pipeline_model_parallel_size > 1
        if staged and self.train.recompute_granularity == "full":
            raise ConfigError(
                "--moe-aux-loss-coeff with --recompute-granularity full and several pipeline "
                "stages is not supported: a recomputed layer does not know its micro-batch; use "
                "--recompute-granularity selective, or no balancing loss"
            )

    def _check_recomputed(self, num_layers: int) -> None:
        """Raise ConfigError unless each chunk of the model has whole units of recomputation."""
        if self.train.recompute_method != "uniform":
            return
        unit, chunks = self.train.recompute_num_layers, self.parallel.virtual_stages(num_layers)
        assert unit is not None  # TrainConfig
        for layers in self.parallel.stage_layers(num_layers):
            if layers // chunks % unit:
                place = "a pipeline stage" if chunks == 1 else "a chunk of a pipeline stage"
                raise ConfigError(
                    f"--recompute-num-layers {unit} does not divide the {layers // chunks} layers "
                    f"of {place} into whole units of --recompute-method uniform; use 1 or another "
                    "divisor"
                )

    def _check_evaluation(self) -> None:
        asked = {
            "--early-stop-patience": self.control.early_stop_patience is not None,
            "--save-best": self.checkpoint.save_best,
        }
        for flag, is_asked in asked.items():
            if is_asked and not self.log.eval_iters:
                raise ConfigError(f"{flag} has no effect without evaluations; give --eval-iters N")
        if self.log.profile and self.log_dir is None:
            raise ConfigError("--profile writes to --log-dir, or to logs/ in --save; give one")
        if self.control.on_non_finite == "rollback" and self.checkpoint.save is None:
            raise ConfigError("--on-non-finite rollback goes back to a checkpoint; give --save")

    @property
    def log_dir(self) -> Path | None:
        """Directory of train.jsonl and loss.png, or None."""
        if self.log.log_dir is not None:
            return self.log.log_dir
        return self.checkpoint.save / "logs" if self.checkpoint.save is not None else None

    @property
    def length_multiple(self) -> int:
        """Padded row lengths are multiples of this (CP and SP cut them)."""
        asked = self.data.row_multiple if self.data.variable_seq_lengths else 1
        return math.lcm(asked, self.parallel.length_multiple)
