"""Owns the place of our data sets in Megatron-LM's own training (`megatron.training`): flags, data
sets, and a forward step whose loss is the sum over supervised tokens. Knows neither the register
that puts it there nor models.

A training script hands its own data sets and forward step to `pretrain`. Both are exchanged when
`--is-instruction-dataset` is given, and left alone otherwise.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from mindspeed_llm.training.megatron_lm_flags import add_flags, settle
from mindspeed_llm.training.megatron_lm_rows import build_samples, micro_batch

_REDUCED_BELOW = (0, 13)  # until then pretrain() wants sums over all replicas


def with_flags(original: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
    """parse_args() that knows the flags of instruction data as well."""

    @functools.wraps(original)
    def parse_args(
        extra_args_provider: Callable[..., Any] | None = None, ignore_unknown_args: bool = False
    ) -> argparse.Namespace:
        parsers: list[argparse.ArgumentParser] = []

        def provide(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
            if extra_args_provider is not None:
                parser = extra_args_provider(parser)
            add_flags(parser)
            parsers.append(parser)
            return parser

        args = original(provide, ignore_unknown_args)

        def fail(message: str) -> NoReturn:
            parsers[0].exit(2, f"error: {message}\n")

        settle(args, fail)
        return args

    return parse_args


def with_token_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """validate_args() that lets the loss be divided once, by the supervised tokens of the batch."""

    @functools.wraps(original)
    def validate_args(args: argparse.Namespace, *rest: Any, **named: Any) -> Any:
        result = original(args, *rest, **named)
        if args.is_instruction_dataset:
            args.calculate_per_token_loss = True
            # What validate_args() sets to False: pipeline stages then tell each other the length.
            args.variable_seq_lengths = args.instruction_lengths_vary
        return result

    return validate_args


def with_instruction_data(original: Callable[..., Any]) -> Callable[..., Any]:
    """pretrain() that takes our data sets and forward step where the flags ask for them."""

    @functools.wraps(original)
    def pretrain(
        train_valid_test_dataset_provider: Callable[..., Any],
        model_provider: Callable[..., Any],
        model_type: Any,
        forward_step_func: Callable[..., Any],
        *rest: Any,
        **named: Any,
    ) -> Any:
        result = original(
            Provider(train_valid_test_dataset_provider),
            model_provider,
            model_type,
            _either(forward_step_func),
            *rest,
            **named,
        )
        atexit.register(_leave)
        return result

    return pretrain


def _leave() -> None:
    """Give up gloo's groups, which Megatron-LM leaves to the end of the interpreter: their threads
    abort some processes there, after all work is done."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


class Provider:
    """Data sets of a run: ours where the flags ask for them, else those of `theirs`."""

    def __init__(self, theirs: Callable[..., Any]) -> None:
        self._theirs = theirs

    @property
    def is_distributed(self) -> bool:
        """Ours are opened by every rank, so that no batch has to be sent to another."""
        return _args().is_instruction_dataset or getattr(self._theirs, "is_distributed", False)

    def __call__(self, numbers: Any, *rest: Any, **named: Any) -> Any:
        """Training, validation and test samples, `numbers` of each; None where none are asked."""
        args = _args()
        if not args.is_instruction_dataset:
            return self._theirs(numbers, *rest, **named)
        return build_samples(args, numbers)


def _args() -> argparse.Namespace:
    # The script that is run has imported it; nothing here needs it otherwise.
    return sys.modules["megatron.training"].get_args()


def _either(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def forward_step(data_iterator: Any, model: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        args = _args()
        if not args.is_instruction_dataset:
            return theirs(data_iterator, model, *rest, **named)
        return instruction_step(args, data_iterator, model)

    return forward_step


def instruction_step(
    args: argparse.Namespace,
    data_iterator: Iterator[Mapping[str, torch.Tensor]],
    model: torch.nn.Module,
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict]]]:
    """One forward pass over the next rows of `data_iterator`, and the loss of what it gives.

    Every rank reads its rows itself: the ranks of a replica read the same, and pipeline stages in
    the middle know the sequences of packed rows, too.
    """
    device = next(model.parameters()).device
    batch = micro_batch(
        next(data_iterator),
        multiple=args.pad_to_multiple_of if args.instruction_rows_trimmed else None,
    )
    targets = batch.targets.to(device)
    trained = targets >= 0
    output = model(
        batch.tokens.to(device),
        batch.positions.to(device),
        None,
        labels=targets.clamp(min=0),
        packed_seq_params=batch.sequences,
    )
    return output, functools.partial(_sum_over_supervised, trained)


def _sum_over_supervised(
    trained: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Sum of `losses` [rows, length] where `trained`, how many those are, and both as a report."""
    from megatron.core.package_info import MAJOR, MINOR

    total = (losses.float() * trained).sum()
    count = trained.sum()
    report = torch.stack([total.detach(), count.float()])
    if (MAJOR, MINOR) < _REDUCED_BELOW:
        dist.all_reduce(report, group=parallel_state.get_data_parallel_group())
        return total, count.int(), {"lm loss": (report[0], report[1])}
    return total, count.int(), {"lm loss": report}
