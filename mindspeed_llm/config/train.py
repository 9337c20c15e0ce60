"""Owns the settings of a training run and the checks that need nothing but themselves; knows
neither files, models, devices nor process groups.

Flags that exist in Megatron-LM or MindSpeed-LLM keep their names and meaning. What is always so
here, and what cannot be honoured, stands in two tables: no flag is accepted and ignored.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path
from typing import Literal

from mindspeed_llm.config.data import HF_PROMPT
from mindspeed_llm.config.flags import flag_of, setting
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.tuning import TuningSettings
from mindspeed_llm.errors import ConfigError

DecayStyle = Literal["constant", "linear", "cosine", "WSD"]


def _at_least(owner: object, lowest: float, *names: str) -> None:
    """Raise ConfigError unless each named field of `owner` is None or >= `lowest`."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value >= lowest:  # `not >=` also catches nan
            raise ConfigError(f"{flag_of(name)} is {value}; expected {lowest} or more")


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

    def __post_init__(self) -> None:
        _at_least(self, 1, "train_iters", "micro_batch_size", "global_batch_size")
        _at_least(self, 2, "seq_length")
        _at_least(self, 0, "seed")
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
        _at_least(self, 1, "recompute_num_layers")

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
class TrainDataConfig:
    """The prepared data sets, their tokenizer, and how rows become batches"""

    data_path: tuple[str, ...] = setting(
        help="prefix of the six files that preprocess_data.py wrote, or a file or directory of "
        "conversations; several, or weights and prefixes in turn (0.3 A 0.7 B), are trained as one",
        metavar="[WEIGHT] PREFIX",
    )
    split: str = setting(
        "100,0,0", help="shares of training, validation and test rows in each data set"
    )
    tokenizer_type: str = setting(
        "PretrainedFromHF", choices=("PretrainedFromHF",), help="kind of tokenizer"
    )
    tokenizer_name_or_path: Path | None = setting(
        None, help="Hugging Face directory of the tokenizer; default: the checkpoint's own"
    )
    prompt_type: str | None = setting(
        None, help="chat template; must be the one the data were prepared with"
    )
    hf_chat_template: bool = setting(
        False, help="the template is the tokenizer's own; for --data-path as for --prompt-type"
    )
    handler_name: str | None = setting(
        None, help="where --data-path is a file of conversations: see preprocess_data.py"
    )
    map_keys: dict | None = setting(
        None, help="where --data-path is a file of conversations: see preprocess_data.py"
    )
    data_cache_path: Path | None = setting(
        None,
        help="directory where data sets made from files of conversations are kept; default: "
        ".mindspeed_llm_cache beside the file",
    )
    variable_seq_lengths: bool = setting(
        False, help="pad a micro-batch to its longest row instead of --seq-length"
    )
    pad_to_multiple_of: int = setting(8, help="with --variable-seq-lengths: round lengths up to it")
    neat_pack: bool = setting(
        False, help="states that the data are packed; conversations of a row never see each other"
    )
    reset_position_ids: bool = setting(
        False, help="states the same: positions start again with each conversation of a row"
    )
    reset_attention_mask: bool = setting(
        False, help="states the same: attention ends with each conversation of a row"
    )
    shuffle: bool = setting(True, negative="--no-shuffle", help="keep the rows in file order")
    padded_samples: bool = setting(
        False,
        help="fill each epoch up to whole global batches with rows of its own, so that no batch "
        "lies in two epochs",
    )
    full_shuffle_instruction_dataset: bool = setting(
        False, help="shuffle all epochs of the run as one, instead of each by itself"
    )

    def __post_init__(self) -> None:
        _at_least(self, 1, "pad_to_multiple_of")
        self._check_order()
        if self.hf_chat_template and self.prompt_type not in (None, HF_PROMPT):
            raise ConfigError(
                f"--prompt-type {self.prompt_type} and --hf-chat-template are two templates; give "
                "one of them"
            )
        twice = [prefix for prefix in self.prefixes if self.prefixes.count(prefix) > 1]
        if twice:
            raise ConfigError(f"--data-path names {twice[0]} twice; give it one weight")

    def _check_order(self) -> None:
        full, padded = self.full_shuffle_instruction_dataset, self.padded_samples
        if full and not self.shuffle:
            raise ConfigError("--full-shuffle-instruction-dataset contradicts --no-shuffle")
        if full and padded:
            raise ConfigError(
                "--padded-samples fills the last batch of an epoch, and with "
                "--full-shuffle-instruction-dataset the epochs are mixed; give one of them"
            )
        if padded and self.weights is not None and len(self.prefixes) > 1:
            raise ConfigError(
                "--padded-samples fills the last batch of an epoch, and data sets that are "
                "blended by weight have no common epoch; drop the flag or the weights"
            )

    @property
    def weights(self) -> tuple[Fraction, ...] | None:
        """Weight of each data set, exactly as written; None where none is given."""
        return self._blend[0]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The data sets."""
        return self._blend[1]

    @property
    def _blend(self) -> tuple[tuple[Fraction, ...] | None, tuple[str, ...]]:
        """As Megatron-LM reads it: an even number of words, each second one a weight."""
        words = self.data_path
        numbers = [_number(word) for word in words[::2]]
        if len(words) % 2 or not any(number is not None for number in numbers):
            return None, words
        for word, number in zip(words[::2], numbers, strict=True):
            if number is None or number <= 0:
                raise ConfigError(
                    f"--data-path {' '.join(words)}: {word!r} is not a weight above 0; expected "
                    "WEIGHT PREFIX in turn for all data sets, or no weight at all"
                )
        return tuple(number for number in numbers if number is not None), words[1::2]

    @property
    def template(self) -> str | None:
        """Name of the template that the data must have, or None."""
        return HF_PROMPT if self.hf_chat_template else self.prompt_type


def _number(word: str) -> Fraction | None:
    try:
        return Fraction(word) if math.isfinite(float(word)) else None
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, learning rate and its schedule"""

    optimizer: str = setting("adam", choices=("adam",), help="AdamW, as Megatron's adam")
    lr: float = setting(help="highest learning rate")
    min_lr: float = setting(0.0, help="learning rate at the end of the decay")
    lr_decay_style: str = setting(
        "linear", choices=("constant", "linear", "cosine", "WSD"), help="shape of the decay"
    )
    lr_decay_iters: int | None = setting(
        None, help="iteration that reaches --min-lr; default: last"
    )
    lr_warmup_fraction: float | None = setting(None, help="share of the decay spent warming up")
    lr_warmup_iters: int = setting(0, help="iterations of linear warm-up")
    lr_warmup_init: float = setting(0.0, help="learning rate at which the warm-up starts")
    lr_wsd_decay_iters: int | None = setting(None, help="of WSD: iterations of the final decay")
    lr_wsd_decay_style: str = setting(
        "exponential",
        choices=("exponential", "linear", "cosine", "minus_sqrt"),
        help="of WSD: shape of the final decay",
    )
    weight_decay: float = setting(0.01, help="decoupled; never on norms and biases")
    adam_beta1: float = setting(0.9, help="decay of the gradient's running mean")
    adam_beta2: float = setting(0.999, help="decay of the squared gradient's running mean")
    adam_eps: float = setting(1e-8, help="added to the denominator")
    clip_grad: float = setting(1.0, help="largest global gradient norm; 0 does not clip")
    override_opt_param_scheduler: bool = setting(
        False,
        aliases=("--override-opt_param-scheduler",),
        help="continue a run with another schedule than its checkpoint's",
    )
    use_distributed_optimizer: bool = setting(
        False, help="shard the optimizer's state over data-parallel ranks (ZeRO-1)"
    )

    def __post_init__(self) -> None:
        _at_least(self, 0, "min_lr", "lr_warmup_init", "weight_decay", "clip_grad")
        _at_least(self, 0, "lr_warmup_iters")
        _at_least(self, 1, "lr_decay_iters", "lr_wsd_decay_iters")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"--lr is {self.lr}; expected a number above 0")
        for name in ("min_lr", "lr_warmup_init"):
            if getattr(self, name) > self.lr:
                raise ConfigError(
                    f"{flag_of(name)} {getattr(self, name)} is above --lr {self.lr}; lower it"
                )
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{flag_of(name)} is {getattr(self, name)}; expected 0 or more and below 1"
                )
        if not self.adam_eps > 0:
            raise ConfigError(f"--adam-eps is {self.adam_eps}; expected a number above 0")
        self._check_schedule()

    def _check_schedule(self) -> None:
        fraction = self.lr_warmup_fraction
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(f"--lr-warmup-fraction is {fraction}; expected 0 or more and below 1")
        if fraction is not None and self.lr_warmup_iters:
            raise ConfigError("give one of --lr-warmup-fraction and --lr-warmup-iters, not both")
        if (self.lr_decay_style == "WSD") != (self.lr_wsd_decay_iters is not None):
            raise ConfigError(
                "--lr-decay-style WSD needs --lr-wsd-decay-iters N, and only WSD takes it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Where weights come from and go to"""

    load: Path = setting(
        help="Hugging Face model, or Megatron checkpoint (convert_ckpt.py or an earlier --save)"
    )
    save: Path | None = setting(None, help="directory for checkpoints; without it nothing is kept")
    save_interval: int | None = setting(None, help="save every N iterations, and at the end")
    save_hf: Path | None = setting(
        None,
        help="at the end, write the model here as transformers opens it, and compare its logits; "
        "needs --save",
    )
    verify: bool = setting(
        True, negative="--no-verify", help="do not compare the logits of --save-hf"
    )
    finetune: bool = setting(
        False, help="take only the weights of --load: iteration 0, new optimizer, new data order"
    )
    load_optim: bool = setting(
        True,
        negative="--no-load-optim",
        help="leave the optimizer's state of --load; see --finetune",
    )
    load_rng: bool = setting(
        True, negative="--no-load-rng", help="leave the random state of --load; see --finetune"
    )

    def __post_init__(self) -> None:
        _at_least(self, 1, "save_interval")
        if self.save_interval is not None and self.save is None:
            raise ConfigError("--save-interval has no effect without --save DIRECTORY")
        if self.save_hf is not None and self.save is None:
            raise ConfigError(
                f"--save-hf {self.save_hf} is made of the last checkpoint; give --save DIRECTORY"
            )
        if not self.verify and self.save_hf is None:
            raise ConfigError("--no-verify has no effect without --save-hf DIRECTORY")
        if not self.finetune and not (self.load_optim and self.load_rng):
            raise ConfigError(
                "--no-load-optim and --no-load-rng go with --finetune here: a run is either "
                "continued exactly or started anew from its weights"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is shown and recorded, and evaluation on the way"""

    log_interval: int = setting(1, help="print a line every N iterations")
    log_dir: Path | None = setting(
        None, help="for train.jsonl and loss.png; default: logs/ in --save, none without --save"
    )
    eval_interval: int = setting(1000, help="evaluate every N iterations; see --eval-iters")
    eval_iters: int = setting(0, help="validation batches of an evaluation; 0 does not evaluate")

    def __post_init__(self) -> None:
        _at_least(self, 1, "log_interval", "eval_interval")
        _at_least(self, 0, "eval_iters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Device and process groups"""

    device: str | None = setting(
        None, choices=("npu", "cuda", "cpu"), help="default: env DEVICE, else the best that works"
    )
    distributed_backend: str | None = setting(
        None, choices=("nccl", "hccl", "gloo"), help="must be the device's own; default: it"
    )
    distributed_timeout_minutes: float = setting(10.0, help="a collective that takes longer fails")

    def __post_init__(self) -> None:
        if not 0 < self.distributed_timeout_minutes < math.inf:
            raise ConfigError(
                f"--distributed-timeout-minutes is {self.distributed_timeout_minutes}; "
                "expected a number above 0"
            )

    def check_backend(self, device: str, backend: str) -> None:
        """Raise ConfigError if --distributed-backend is not `backend`, the one of `device`."""
        asked = self.distributed_backend
        # Launchers written for torch_npu's transfer_to_npu say nccl where hccl is meant.
        if asked in (None, backend) or (device == "npu" and asked == "nccl"):
            return
        raise ConfigError(
            f"--distributed-backend {asked} does not fit the device {device}, whose backend is "
            f"{backend}; drop the flag or choose another --device"
        )


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

    def __post_init__(self) -> None:
        tp = self.parallel.tensor_model_parallel_size
        if self.parallel.sequence_parallel and self.train.seq_length % tp:
            raise ConfigError(
                f"--seq-length {self.train.seq_length} is not a multiple of "
                f"--tensor-model-parallel-size {tp}, which --sequence-parallel needs"
            )

    @property
    def log_dir(self) -> Path | None:
        """Directory of train.jsonl and loss.png, or None."""
        if self.log.log_dir is not None:
            return self.log.log_dir
        return self.checkpoint.save / "logs" if self.checkpoint.save is not None else None

    @property
    def length_multiple(self) -> int:
        """Padded row lengths are multiples of this (sequence parallelism cuts them by TP)."""
        tp = self.parallel.tensor_model_parallel_size if self.parallel.sequence_parallel else 1
        return math.lcm(self.data.pad_to_multiple_of if self.data.variable_seq_lengths else 1, tp)


ALWAYS: dict[str, str] = {
    "--is-instruction-dataset": "training reads the six files of an instruction data set",
    "--use-mcore-models": "models are megatron-core's GPTModel",
    "--use-rotary-position-embeddings": "every supported family has rotary positions",
    "--attention-softmax-in-fp32": "the softmax of attention is computed in fp32",
    "--no-gradient-accumulation-fusion": "weight gradients are accumulated without apex",
    "--no-masked-softmax-fusion": "apex's fused softmax is never used",
    "--no-persist-layer-norm": "apex's persistent layer norm is never used",
    "--lora-ckpt-filter": "checkpoints of a LoRA run hold the adapters alone",
}

_KERNEL = "kernels are chosen by the device, and a switch here would change nothing: drop it"

REFUSED: dict[str, str] = {
    "--fp16": "there is no loss scaling; use --bf16, or neither for fp32",
    "--initial-loss-scale": "bf16 and fp32 need no loss scaling; drop it",
    "--init-method-std": "weights always come from --load, none are initialised; drop it",
    "--spec": "the family in the checkpoint's config.json chooses the layer spec; drop it",
    "--use-fused-rmsnorm": _KERNEL,
    "--use-fused-swiglu": _KERNEL,
    "--use-fused-rotary-pos-emb": _KERNEL,
    "--use-flash-attn": _KERNEL,
    "--tokenizer-not-use-fast": "the fast tokenizer is always used; data and chat use it too",
    "--tokenizer-model": "give the Hugging Face directory: --tokenizer-name-or-path",
    "--no-pad-to-seq-lengths": "the flag is --variable-seq-lengths",
    "--num-workers": "rows are read from memory-mapped files in the training process; drop it",
    "--lr-decay-samples": "schedules count iterations; use --lr-decay-iters",
    "--train-samples": "give --train-iters or --epochs",
    "--context-parallel-size": "context parallelism is not supported yet; drop it",
    "--num-layers-per-virtual-pipeline-stage": "interleaved pipelines are not supported yet",
    "--transformer-impl": "layers are always the local ones; Transformer Engine is not used",
    "--overlap-grad-reduce": "communication is not overlapped yet; drop it",
    "--overlap-param-gather": "communication is not overlapped yet; drop it",
    "--lora-fusion": "an adapter exchanges its rank's numbers only, nothing is left to fuse",
    "--lora-modules-to-save": "adapters are trained alone; --train-only trains whole layers",
    "--lora-register-forward-hook": "gradients reach the adapters by themselves; drop it",
}
