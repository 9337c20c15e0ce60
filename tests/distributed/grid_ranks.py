"""What a rank of the grid does: two steps of one point, compared with the single process's numbers.

`main` is called in every rank; see `test_grid` for what it is given.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from safetensors.torch import load_file, save_file

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.training.inputs import read_inputs
from mindspeed_llm.training.setup import prepare
from mindspeed_llm.training.step import train_batch

STEPS = 2


def run_point(flags: list[str]) -> tuple[Any, list[float], list[float], list[int]]:
    """Train STEPS steps: the job, losses, gradient norms, supervised tokens.

    The job's gradients are those of the first step.
    """
    settings, architecture = read_settings(flags)
    inputs = read_inputs(settings, architecture, check_tokenizer=False)
    job = prepare(settings, inputs, torch.device("cpu"))
    losses, norms, counts, kept = [], [], [], None
    for step in range(STEPS):
        totals, norm = train_batch(job.replica, job.feed.micro_batches(step * job.batch_size))
        job.replica.schedule.step(job.batch_size)
        losses.append(totals.loss)
        norms.append(norm)
        counts.append(totals.supervised)
        kept = kept or list(gradients(job))
    return kept, losses, norms, counts


def gradients(job: Any) -> Any:
    """(global name, offset, gradient, which elements this rank has) of every local tensor."""
    parts = getattr(job.replica.optimizer, "chained_optimizers", [job.replica.optimizer])
    owned = None
    if isinstance(parts[0], DistributedOptimizer):
        owned = {}
        for part in parts:
            for buckets in (b for buffer in part.gbuf_ranges for b in buffer.values()):
                for bucket in buckets:
                    for parameter, ranges in bucket["param_map"].items():
                        owned[id(parameter)] = ranges["param"]
    for chunk in job.replica.model:
        for item in nested_values(chunk.module.sharded_state_dict()):
            if not isinstance(item, ShardedTensor | ShardedTensorFactory):
                continue
            parameter = item.data
            grad, mine = parameter.main_grad.clone(), torch.ones_like(parameter.main_grad)
            if owned is not None:
                mine.zero_()
                if id(parameter) in owned:
                    span = owned[id(parameter)]
                    mine.view(-1)[span.start : span.end] = 1
            yield from zip(_pieces(item, grad), _pieces(item, mine), strict=True)


def _pieces(item: Any, data: torch.Tensor) -> list[tuple[str, tuple[int, ...], torch.Tensor, Any]]:
    # A sharded tensor insists on the dtype of its data; a parameter's gradient is fp32 beside bf16.
    dtype = {"dtype": data.dtype} if isinstance(item, ShardedTensor) else {}
    whole = dataclasses.replace(item, data=data, **dtype)
    built = whole if isinstance(item, ShardedTensor) else whole.build()
    tensors = [built] if isinstance(built, ShardedTensor) else list(nested_values(built))
    return [
        (t.key, t.global_offset, t.data[(None,) * t.prepend_axis_num], t.global_shape)
        for t in tensors
    ]


def write_reference(flags: list[str], path: str) -> dict[str, Any]:
    """Run one process alone; its gradients, whole, go to `path`."""
    kept, losses, norms, counts = run_point(flags)
    whole: dict[str, torch.Tensor] = {}
    for (key, offset, grad, shape), _ in kept:
        tensor = whole.setdefault(key, torch.zeros(shape))
        tensor[_box(offset, grad)] = grad
    save_file(whole, path)
    return {"losses": losses, "norms": norms, "counts": counts}


def _box(offset: tuple[int, ...], data: torch.Tensor) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(offset, data.shape, strict=True))


def compare(flags: list[str], path: str) -> dict[str, Any]:
    """Largest relative distance of a gradient on this rank; losses and norms as they are."""
    kept, losses, norms, counts = run_point(flags)
    whole, worst, where, elements = load_file(path), 0.0, "", 0
    for (key, offset, grad, _), (_, _, mine, _) in kept:
        stored = whole[key][_box(offset, grad)]
        if stored.shape != grad.shape:  # the vocabulary is padded for this layout
            padded = torch.zeros_like(grad)
            padded[_box((0,) * stored.dim(), stored)] = stored
            stored = padded
        elements += int(mine.sum())
        size = float((stored * mine).norm())
        apart = float(((grad - stored) * mine).norm()) / (size or 1.0)
        if apart > worst:
            worst, where = apart, key
    return {"losses": losses, "norms": norms, "counts": counts, "gradient": worst,
            "worst": where, "elements": elements}  # fmt: skip


def main(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each point: `flags`, `reference` (path of gradients), `write` where it is the reference."""
    results = []
    for point in points:
        act = write_reference if point.get("write") else compare
        results.append(act(point["flags"], str(Path(point["reference"]))))
        parallel_state.destroy_model_parallel()
    return results
