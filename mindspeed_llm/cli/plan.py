"""Owns `mindspeed-llm plan`: which layouts fit a device's memory, and which of them to take."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mindspeed_llm.checkpoint.directory import is_checkpoint_root, model_directory
from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.plan import PlanConfig
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.models.memory import Memory, Recompute, Run, peak
from mindspeed_llm.models.registry import read_model
from mindspeed_llm.models.shapes import count_parameters

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
_FLAGS: dict[Recompute, list[str]] = {
    "none": [],
    "selective": ["--recompute-granularity", "selective"],
    "full": ["--recompute-granularity", "full", "--recompute-method", "uniform",
             "--recompute-num-layers", "1"],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout and the memory of its fullest rank."""

    run: Run
    memory: Memory

    @property
    def cost(self) -> tuple[int, ...]:
        """What makes it slower, worst first: recomputed work, ranks that share a model, bubbles.

        Interleaved stages shorten the bubbles, but come last: what a step must have then is not
        known here.
        """
        parallel = self.run.parallel
        tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        return (
            RECOMPUTE.index(self.run.recompute), tp * pp, parallel.context_parallel_size, pp,
            parallel.expert_model_parallel_size, parallel.expert_tensor_size, self.chunks,
        )  # fmt: skip

    @property
    def chunks(self) -> int:
        """Parts of the model on each pipeline stage (VPP)."""
        return self.run.parallel.num_virtual_stages_per_pipeline_rank or 1

    def flags(self) -> list[str]:
        """Of posttrain_gpt.py, for this layout."""
        parallel, run = self.run.parallel, self.run
        return [
            "--tensor-model-parallel-size", str(parallel.tensor_model_parallel_size),
            "--pipeline-model-parallel-size", str(parallel.pipeline_model_parallel_size),
            *(["--sequence-parallel"] if parallel.sequence_parallel else []),
            *([] if parallel.num_layer_list is None else
              ["--num-layer-list", parallel.num_layer_list]),
            *([] if self.chunks == 1 else
              ["--num-virtual-stages-per-pipeline-rank", str(self.chunks)]),
            *([] if parallel.context_parallel_size == 1 else
              ["--context-parallel-size", str(parallel.context_parallel_size)]),
            *_expert_flags(parallel),
            "--seq-length", str(run.seq_length), "--micro-batch-size", str(run.micro_batch_size),
            *(["--bf16"] if run.bf16 else []),
            *(["--use-distributed-optimizer"] if run.distributed_optimizer else []),
            *_FLAGS[run.recompute],
        ]  # fmt: skip

    def as_data(self) -> dict[str, Any]:
        """JSON data; sizes in bytes."""
        parallel = dataclasses.asdict(self.run.parallel)
        own = {"data_parallel_size": self.run.data_parallel, "recompute": self.run.recompute}
        memory = dataclasses.asdict(self.memory) | {"total": self.memory.total}
        return parallel | own | {"memory": memory, "flags": self.flags()}


def _expert_flags(parallel: ParallelConfig) -> list[str]:
    ep, etp = parallel.expert_model_parallel_size, parallel.expert_tensor_parallel_size
    return [
        *(["--expert-model-parallel-size", str(ep)] if ep > 1 else []),
        *([] if etp is None else ["--expert-tensor-parallel-size", str(etp)]),
    ]


def main(argv: Sequence[str]) -> int:
    """Print the plan; an error when no layout fits."""
    (config,) = parse(
        argv,
        PlanConfig,
        prog="mindspeed-llm plan",
        description="Memory of a training run at each layout, and which layout to take.",
    )
    alone = (config.model / "config.json").is_file() or not is_checkpoint_root(config.model)
    model = read_model(config.model if alone else model_directory(config.model))
    if config.seq_length > model.max_position_embeddings:
        raise ConfigError(
            f"--seq-length {config.seq_length} is beyond the model's "
            f"{model.max_position_embeddings} positions; lower it"
        )
    found = list(candidates(model, config))
    limit = int(config.bytes * (1 - config.headroom))
    chosen = choose(found, limit)
    if chosen is None:  # it costs an exchange in every layer: only where there is no other way
        found += candidates(model, config, shared_rows=True)
        chosen = choose(found, limit)
    if config.json:
        print(json.dumps({
            "parameters": count_parameters(model), "limit": limit,
            "chosen": None if chosen is None else chosen.as_data(),
            "candidates": [candidate.as_data() for candidate in found],
        }, indent=2))  # fmt: skip
    else:
        _show(model, config, found, chosen, limit)
    if chosen is None:
        least = min(found, key=lambda candidate: candidate.memory.total)
        raise ConfigError(
            f"no layout of {config.devices} devices fits {config.memory} less "
            f"{config.headroom:.0%} headroom; the least is {least.memory.total / 2**30:.1f} GiB: "
            "use more devices, a shorter --seq-length, or LoRA"
        )
    return 0


def candidates(
    model: ModelConfig, config: PlanConfig, *, shared_rows: bool = False
) -> Iterator[Candidate]:
    """Every layout that fits model and devices, without and with recomputation.

    Args:
        shared_rows: those with context parallelism, or those without.
    """
    for parallel in layouts(model, config, shared_rows=shared_rows):
        replicas = parallel.data_parallel_size(config.devices)
        for recompute in RECOMPUTE:
            run = Run(
                parallel=parallel,
                data_parallel=replicas,
                seq_length=config.seq_length,
                micro_batch_size=config.micro_batch_size,
                bf16=config.bf16,
                distributed_optimizer=config.use_distributed_optimizer
                and replicas * parallel.context_parallel_size > 1,
                recompute=recompute,
            )
            yield Candidate(run, peak(model, run))


def layouts(
    model: ModelConfig, config: PlanConfig, *, shared_rows: bool = False
) -> Iterator[ParallelConfig]:
    """Every layout that fits model and devices; see `candidates`.

    Where the stages do not divide the layers, they differ by one: the later ones, which keep fewer
    micro-batches waiting, have more.
    """
    ranks = _divisors(config.devices)[1:] if shared_rows else [1]
    experts = _divisors(model.experts.num_experts) if model.experts else [1]
    for tp in _divisors(config.devices):
        if tp > config.devices_per_node:
            continue
        # Splitting the sequence costs nothing where TP is used, and saves what norms keep.
        together = tp > 1 and config.seq_length % tp == 0
        if model.experts is not None and tp > 1 and not together:
            continue
        whole = [1] if model.experts is not None and tp > 1 else []
        for pp, chunks, ep, etp, cp in itertools.product(
            _divisors(config.devices), (None, 2), experts, [None, *whole], ranks
        ):
            if chunks is not None and model.num_layers % (pp * chunks):
                continue
            if cp > 1 and config.seq_length % (2 * cp * (tp if together else 1)):
                continue
            try:
                parallel = ParallelConfig(
                    tensor_model_parallel_size=tp,
                    pipeline_model_parallel_size=pp,
                    sequence_parallel=together,
                    num_virtual_stages_per_pipeline_rank=chunks,
                    num_layer_list=_stages(model.num_layers, pp),
                    context_parallel_size=cp,
                    expert_model_parallel_size=ep,
                    expert_tensor_parallel_size=etp,
                )
                parallel.data_parallel_size(config.devices)
                parallel.check_model(model)
            except ConfigError:
                continue  # this layout cannot be used; it is no mistake of the user
            yield parallel


def choose(found: Sequence[Candidate], limit: int) -> Candidate | None:
    """The fastest layout that fits: the least recomputation, then the fewest ranks a model, then
    the fewest pipeline stages; None when none fits."""
    fitting = [candidate for candidate in found if candidate.memory.total <= limit]
    return min(fitting, key=lambda candidate: candidate.cost, default=None)


def _stages(layers: int, pp: int) -> str | None:
    """--num-layer-list of `pp` stages that cannot be equal; None where they can."""
    if layers % pp == 0 or layers < pp:
        return None
    each, more = divmod(layers, pp)
    return ",".join([str(each)] * (pp - more) + [str(each + 1)] * more)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _show(
    model: ModelConfig,
    config: PlanConfig,
    found: Sequence[Candidate],
    chosen: Candidate | None,
    limit: int,
) -> None:
    kind = "bf16" if config.bf16 else "fp32"
    title = (f"{model.family}, {count_parameters(model) / 1e9:.2f} B parameters, {kind}, "
             f"{config.devices} devices of {config.memory} ({limit / 2**30:.1f} GiB usable), rows "
             f"of {config.seq_length} tokens; GiB on the fullest rank")  # fmt: skip
    table = Table(title=title)
    own = ("EP", "of TP") if model.experts is not None else ()
    rows = any(candidate.run.parallel.context_parallel_size > 1 for candidate in found)
    layout = ("TP", "PP", "VPP", "DP", *(["CP"] if rows else []), *own, "SP", "recompute")
    for column in (*layout, "weights", "gradients", "optimizer", "activations", "passing", "total",
                   ""):  # fmt: skip
        table.add_column(column, justify="left" if column in ("SP", "recompute", "") else "right")
    for candidate in found:
        parallel, memory = candidate.run.parallel, candidate.memory
        sizes = (*dataclasses.astuple(memory), memory.total)
        verdict = "fits" if memory.total <= limit else "too large"
        table.add_row(
            str(parallel.tensor_model_parallel_size), str(parallel.pipeline_model_parallel_size),
            str(candidate.chunks), str(candidate.run.data_parallel),
            *([str(parallel.context_parallel_size)] if rows else []),
            *([str(parallel.expert_model_parallel_size), str(parallel.expert_tensor_size)]
              if own else []),
            "yes" if parallel.sequence_parallel else "no",
            candidate.run.recompute, *(f"{size / 2**30:.2f}" for size in sizes),
            "<- chosen" if candidate is chosen else verdict,
        )  # fmt: skip
    # a pipe has no width of its own, and 80 columns are too few for thirteen
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, highlight=False)
    console.print(table)
    if chosen is not None:
        console.print("fits with the least recomputation, then the fewest ranks a model:")
        console.print("  posttrain_gpt.py " + " ".join(chosen.flags()) + " ...", soft_wrap=True)
        for other in found:
            if other.memory.total <= limit and _interleaved(chosen, other):
                stages = chosen.run.parallel.pipeline_model_parallel_size
                console.print(f"with --num-virtual-stages-per-pipeline-rank {other.chunks} it fits "
                              "too, and stages wait less for each other; a step must then have a "
                              f"multiple of {stages} micro-batches", soft_wrap=True)  # fmt: skip


def _interleaved(chosen: Candidate, other: Candidate) -> bool:
    """Whether `other` is `chosen` with its stages cut into chunks."""
    plain = dataclasses.replace(other.run.parallel, num_virtual_stages_per_pipeline_rank=None)
    return other.chunks > 1 and dataclasses.replace(other.run, parallel=plain) == chosen.run
