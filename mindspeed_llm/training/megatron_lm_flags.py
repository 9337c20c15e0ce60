"""Owns the flags that instruction data add to a Megatron-LM training script, and their checks;
knows neither data sets' rows nor models."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mindspeed_llm.config.train_data import TrainDataConfig
from mindspeed_llm.data.blend import check_alike
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.errors import UserError

_HF_TOKENIZER = "PretrainedFromHF"
_SWITCH = {"action": "store_true"}
_FLAGS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("--is-instruction-dataset", _SWITCH,
     "--data-path is what `mindspeed-llm preprocess` wrote: its answers are trained"),
    ("--prompt-type", {}, "chat template; must be the one the data were prepared with"),
    ("--tokenizer-name-or-path", {}, f"directory of the tokenizer of type {_HF_TOKENIZER}"),
    ("--variable-seq-lengths", _SWITCH, "pad a micro-batch to its longest row"),
    ("--pad-to-multiple-of", {"type": int, "default": 8},
     "with --variable-seq-lengths: round lengths up to it"),
    ("--no-shuffle", {"action": "store_false", "dest": "shuffle"}, "keep the rows in file order"),
    ("--padded-samples", _SWITCH, "fill each epoch up to whole global batches with its own rows"),
    ("--full-shuffle-instruction-dataset", _SWITCH, "shuffle all epochs of the run as one"),
    ("--neat-pack", _SWITCH, "states that rows are packed"),
)  # fmt: skip
# Accepted by Megatron-LM for other kinds of data sets; they would have no effect here.
_WITHOUT_EFFECT = ("sft", "mock_data", "fim_data", "train_data_path", "valid_data_path",
                   "test_data_path", "per_split_data_args_path", "data_args_path",
                   "eod_mask_loss", "rl_use_sequence_packing")  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that the script has not got, and the tokenizer type of MindSpeed-LLM."""
    known = {word: action for action in parser._actions for word in action.option_strings}
    group = parser.add_argument_group("instruction data (mindspeed_llm)")
    for flag, how, text in _FLAGS:
        if flag not in known:
            group.add_argument(flag, help=text, **how)
    kinds = known.get("--tokenizer-type")
    if kinds is not None and kinds.choices is not None and _HF_TOKENIZER not in kinds.choices:
        kinds.choices = [*kinds.choices, _HF_TOKENIZER]


def settle(args: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    """Check the flags against each other and the data sets, and say the rest in Megatron's words.

    Sets `instruction_rows_trimmed` (--variable-seq-lengths, which validate_args() takes away) and
    `instruction_lengths_vary`: whether pipeline stages must tell each other the length of a
    micro-batch. `fail` ends the program with a message.
    """
    _name_tokenizer(args, fail)
    args.instruction_rows_trimmed = args.variable_seq_lengths
    args.instruction_lengths_vary = False
    if not args.is_instruction_dataset:
        for flag, how, _ in _FLAGS[3:]:
            name = how.get("dest", flag[2:].replace("-", "_"))
            if getattr(args, name) != how.get("default", how.get("action") == "store_false"):
                fail(f"{flag} has no effect without --is-instruction-dataset")
        return
    given = vars(args)  # which of these flags there are depends on the version
    for name in _WITHOUT_EFFECT:
        if given.get(name):
            fail(f"--{name.replace('_', '-')} contradicts --is-instruction-dataset; drop one")
    if not args.data_path:
        fail("--is-instruction-dataset needs --data-path, the prefix that preprocess wrote to")
    if args.context_parallel_size > 1:
        fail(
            f"--context-parallel-size {args.context_parallel_size}: in a Megatron-LM script "
            "instruction data are not split along the sequence; use posttrain_gpt.py for it"
        )
    if args.dataloader_type not in (None, "single"):
        fail(f"--dataloader-type {args.dataloader_type}: instruction data have an order of their "
             "own; use single")  # fmt: skip
    try:
        packed = _check_data(args)
    except UserError as error:
        fail(str(error))
    stacked = packed and args.micro_batch_size > 1  # one row of all: longer than --seq-length
    stages = args.pipeline_model_parallel_size > 1
    args.instruction_lengths_vary = stages and (args.variable_seq_lengths or stacked)
    if args.instruction_lengths_vary and args.moe_token_dispatcher_type == "allgather":
        if args.num_experts:
            fail(
                "--moe-token-dispatcher-type allgather takes micro-batches of one length only; use "
                "alltoall"
            )
        args.moe_token_dispatcher_type = "alltoall"  # looked at without experts as well


def _name_tokenizer(args: argparse.Namespace, fail: Callable[[str], NoReturn]) -> None:
    if args.tokenizer_type != _HF_TOKENIZER:
        return
    if not args.tokenizer_name_or_path:
        fail(f"--tokenizer-type {_HF_TOKENIZER} needs --tokenizer-name-or-path DIRECTORY")
    args.tokenizer_type = "HuggingFaceTokenizer"
    args.tokenizer_model = args.tokenizer_name_or_path


def data_settings(args: argparse.Namespace) -> TrainDataConfig:
    """The flags of instruction data as the settings of our own training.

    Raises:
        ConfigError: they contradict each other.
    """
    taken = ("prompt_type", "pad_to_multiple_of", "shuffle",
             "padded_samples", "full_shuffle_instruction_dataset", "neat_pack",
             "reset_position_ids", "reset_attention_mask")  # fmt: skip
    given = {name: getattr(args, name) for name in taken}
    path = tuple(str(word) for word in args.data_path)
    return TrainDataConfig(
        data_path=path, split=args.split or "100,0,0",
        variable_seq_lengths=args.instruction_rows_trimmed, **given,
    )  # fmt: skip


def manifests_of(data: TrainDataConfig) -> list[Manifest]:
    """Manifests of the data sets, alike in tokenizer, template and packing.

    Raises:
        DataError: one is missing, damaged, or unlike the others.
    """
    found = [Manifest.read(DatasetFiles(Path(prefix))) for prefix in data.prefixes]
    check_alike(data.prefixes, found)
    return found


def _check_data(args: argparse.Namespace) -> bool:
    """Whether the rows are packed; raises UserError where flags and data do not agree."""
    data = data_settings(args)
    manifests: Sequence[Manifest] = manifests_of(data)
    for prefix, manifest in zip(data.prefixes, manifests, strict=True):
        packing = manifest.packing
        if data.prompt_type is not None and data.prompt_type != manifest.template:
            raise UserError(
                f"--prompt-type is {data.prompt_type}, but --data-path {prefix} was prepared with "
                f"{manifest.template}; use that, or prepare the data again"
            )
        if packing is None and data.neat_pack:
            raise UserError(
                f"--neat-pack says that rows hold several conversations, but each row of {prefix} "
                "is one; drop the flag, or prepare the data with --pack"
            )
        if packing is not None and packing.capacity != args.seq_length:
            raise UserError(
                f"--seq-length is {args.seq_length}, but --data-path {prefix} was packed into rows "
                f"of {packing.capacity} tokens; use --seq-length {packing.capacity}"
            )
        if packing is not None and data.variable_seq_lengths:
            raise UserError(
                f"--variable-seq-lengths has no effect on {prefix}, whose packed rows all have "
                f"{packing.capacity} tokens; drop it"
            )
    return manifests[0].packing is not None
