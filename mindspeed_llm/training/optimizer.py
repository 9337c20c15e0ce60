"""Owns the data-parallel wrapper, AdamW over it, and the guarded update; megatron-core's own parts,
put together for per-token losses. Knows neither data nor schedules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.errors import TrainingError


class NotFinite(TrainingError):
    """Loss, gradients or weights that are not finite numbers; the same on every rank."""


def wrap_model(model: Sequence[torch.nn.Module], *, sharded_state: bool) -> torch.nn.ModuleList:
    """Gradient buffers (fp32) and their reduction over data-parallel ranks around each chunk.

    Their `config` must have `calculate_per_token_loss`: gradients are summed over micro-batches
    and ranks and divided once by the supervised tokens of the global batch.
    """
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=sharded_state,
        overlap_grad_reduce=False,
        # A NaN is found below, on all ranks together, instead of by an assertion on one of them.
        check_for_nan_in_grad=False,
    )
    wrapped = torch.nn.ModuleList()
    for chunk in model:
        assert chunk.config.calculate_per_token_loss
        wrapped.append(DistributedDataParallel(chunk.config, ddp_config, chunk))
        chunk.config.finalize_model_grads_func = finalize_model_grads
    return wrapped


def build_optimizer(
    model: Iterable[torch.nn.Module], settings: OptimizerSettings, dtype: torch.dtype
) -> MegatronOptimizer:
    """AdamW with fp32 main weights; norms and biases are not decayed."""
    config = OptimizerConfig(
        optimizer=settings.optimizer,
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=settings.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=settings.use_distributed_optimizer,
    )
    return get_megatron_optimizer(config, list(model))


def update(optimizer: MegatronOptimizer, loss: float) -> float:
    """Clip and take one optimizer step; returns the global gradient norm before clipping.

    Gradients must be finalized (reduced and divided). All ranks see the same `loss` and norm, so
    all of them stop together.

    Raises:
        NotFinite: `loss` or the gradient norm is not finite; no weight was changed.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NotFinite(f"loss is {loss} and the gradient norm {norm}; expected finite numbers")
    limit = optimizer.config.clip_grad
    if limit > 0 and norm > limit:
        for part in optimizer.chained_optimizers:
            clip_grad_by_total_norm_fp32(part.get_parameters(), limit, norm)
    optimizer.step_with_ready_grads()
    return norm


@torch.no_grad()
def check_finite(model: torch.nn.Module, optimizer: MegatronOptimizer) -> None:
    """Read all weights and optimizer states; every rank calls it.

    Raises:
        NotFinite: one of them is not finite, on any rank; names the rank's first weight.
    """
    wrong = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    for part in optimizer.chained_optimizers:
        for main in part.get_parameters():
            state = part.optimizer.state.get(main, {})
            tensors = [
                main,
                *(value for value in state.values() if isinstance(value, torch.Tensor)),
            ]
            if not all(tensor.isfinite().all() for tensor in tensors):
                wrong.append("the optimizer's state")
                break
    found = torch.tensor(len(wrong), device=next(model.parameters()).device)
    torch.distributed.all_reduce(found)
    if found.item():
        where = f"{wrong[0]} on this rank" if wrong else "a weight of another rank"
        raise NotFinite(f"{where} is not finite")
