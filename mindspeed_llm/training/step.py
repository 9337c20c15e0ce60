"""Owns one pass over the micro-batches of a global batch: forward, backward, the update, and the
sums that all ranks share. Knows neither where rows come from nor how often it is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from mindspeed_llm.errors import TrainingError
from mindspeed_llm.training.balance import Balance
from mindspeed_llm.training.batch import MicroBatch
from mindspeed_llm.training.flops import Work
from mindspeed_llm.training.loss import SupervisedLoss
from mindspeed_llm.training.metrics import Totals
from mindspeed_llm.training.optimizer import update
from mindspeed_llm.training.turns import MOST

LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]


@dataclasses.dataclass
class Replica:
    """This process's share of the model and what changes it.

    `model` has one DistributedDataParallel for each chunk of an interleaved pipeline, else one.
    `loss` is what the last chunk answers with; None on pipeline stages without output layer.
    `balance` is the balancing loss of experts; None where there is none.
    """

    model: torch.nn.ModuleList
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    loss: SupervisedLoss | None
    device: torch.device
    work: Work
    balance: Balance | None = None


def train_batch(replica: Replica, micro_batches: Sequence[MicroBatch]) -> tuple[Totals, float]:
    """One optimizer step; returns the sums over the global batch and the gradient norm.

    The schedule is not moved: the caller does that after the step.

    Raises:
        TrainingError: nothing in the global batch is supervised; or `NotFinite`, a number is not
            finite. No weight was changed, and every rank raises.
    """
    for chunk in replica.model:
        chunk.zero_grad_buffer()
    replica.optimizer.zero_grad()
    replica.model.train()
    if replica.balance is not None:
        replica.balance.start(micro_batches, replica.device)
    totals = _pass(replica, micro_batches, forward_only=False)
    if totals.supervised == 0:
        raise TrainingError(
            "no row of the global batch has a supervised token; prepare the data again, or look "
            "at the rows with a larger --global-batch-size"
        )
    return totals, update(replica.optimizer, totals.loss)


@torch.no_grad()
def evaluate_batch(replica: Replica, micro_batches: Sequence[MicroBatch]) -> Totals:
    """The sums over a global batch, without a gradient."""
    replica.model.eval()
    return _pass(replica, micro_batches, forward_only=True)


def _pass(replica: Replica, micro_batches: Sequence[MicroBatch], *, forward_only: bool) -> Totals:
    def forward(
        batches: Iterator[MicroBatch], model: torch.nn.Module
    ) -> tuple[torch.Tensor, LossFunction]:
        batch = next(batches).to(replica.device)
        if model.module.post_process:
            assert replica.loss is not None
            replica.loss.choose(batch.targets, batch.turns if forward_only else None)
        if replica.balance is not None:
            replica.balance.choose(batch.real)
        sequences = packed_sequences(batch.cu_seqlens)
        output = model(batch.tokens, batch.positions, None, packed_seq_params=sequences)

        def loss(answer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            assert replica.loss is not None, "only the last pipeline stage has a loss"
            total = answer.sum()
            count = torch.tensor(batch.supervised, dtype=torch.int, device=replica.device)
            return total, count, {"losses": answer.detach().flatten()}

        return output, loss

    iters = [iter(micro_batches) for _ in replica.model]
    losses = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iters if len(iters) > 1 else iters[0],
        model=list(replica.model) if len(iters) > 1 else replica.model[0],
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].length,
        micro_batch_size=len(micro_batches[0].tokens),
        forward_only=forward_only,
    )
    return _sum_over_ranks(losses, micro_batches, replica, by_turn=forward_only)


def packed_sequences(cu_seqlens: torch.Tensor | None) -> PackedSeqParams | None:
    """What every pipeline stage's layers must know of a packed micro-batch."""
    if cu_seqlens is None:
        return None
    # The longest sequence, not the row: megatron-core takes a rotary table as long as the row for
    # one that runs through it, and positions would not start again.
    longest = int(cu_seqlens.diff().max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def _sum_over_ranks(
    losses: Sequence[dict[str, torch.Tensor]],
    micro_batches: Sequence[MicroBatch],
    replica: Replica,
    *,
    by_turn: bool,
) -> Totals:
    """Sums of the global batch, the same on every rank; each data-parallel replica counts once."""
    # The ranks of a replica see the same micro-batches; one of those with the loss speaks for all.
    speaks = (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
    )
    turns = MOST if by_turn else 0
    sums = torch.zeros(5 + 2 * turns, dtype=torch.float32, device=replica.device)
    if speaks:
        by_batch = torch.stack([part["losses"] for part in losses])
        sums[0] = by_batch.sum()
        sums[1] = sum(batch.supervised for batch in micro_batches)
        sums[2] = sum(batch.real_tokens for batch in micro_batches)
        sums[3] = sum(batch.tokens.numel() for batch in micro_batches)
        sums[4] = sum(replica.work.of(batch) for batch in micro_batches) / 1e12
        if by_turn:
            sums[5 : 5 + turns] = by_batch.sum(0)
            counts = [b.turns.clamp(max=MOST).flatten().bincount(minlength=MOST + 1)[1:]
                      for b in micro_batches]  # fmt: skip
            sums[5 + turns :] = torch.stack(counts).sum(0).float()
    torch.distributed.all_reduce(sums)
    loss_sum, supervised, real, padded, tflop, *rest = sums.tolist()
    return Totals(
        loss_sum=loss_sum,
        supervised=round(supervised),
        real_tokens=round(real),
        padded_tokens=round(padded),
        tflop=tflop,
        turns=tuple(zip(rest[:turns], map(round, rest[turns:]), strict=True)),
    )
