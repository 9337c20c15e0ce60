"""What packing costs and saves: attention of a packed row against one sequence of its length, and
training on packed rows against the same conversations padded.

    python benchmarks/packed_attention.py --length 4096
    python benchmarks/packed_attention.py --load HF --rows PREFIX --packs PREFIX

The second form also trains: HF is a Hugging Face directory, the prefixes are data sets that
`mindspeed-llm preprocess` made of the same conversations, with the same --seq-length, without and
with --pack. Variants take turns and the median counts. CPU seconds are shown beside wall seconds,
because on a shared machine only they repeat.
"""

from __future__ import annotations

import mindspeed_llm.megatron_adaptor  # noqa: F401  before anything of megatron-core

# isort: split
import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from megatron.core import parallel_state

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.device.detect import detect
from mindspeed_llm.device.runtime import init_distributed, shutdown_distributed
from mindspeed_llm.kernels.attention import attention, packed_attention
from mindspeed_llm.training.inputs import read_inputs
from mindspeed_llm.training.loop import Job
from mindspeed_llm.training.setup import prepare, start_groups
from mindspeed_llm.training.step import train_batch

Seconds = tuple[float, float]  # of the wall's clock, of the processor


def timed(work: Callable[[], object]) -> Seconds:
    """Seconds that `work` takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def medians(variants: dict[str, Callable[[], object]], repeat: int) -> dict[str, Seconds]:
    """Median seconds of each variant; the first of the turns they take warms up"""
    seen: dict[str, list[Seconds]] = {name: [] for name in variants}
    for _ in range(repeat + 1):
        for name, work in variants.items():
            seen[name].append(timed(work))
    return {
        name: (statistics.median(w for w, _ in part[1:]), statistics.median(p for _, p in part[1:]))
        for name, part in seen.items()
    }


def attend(length: int, sequence: int, softcap: float | None) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of 8 heads of 64 in 4 groups: packed in `sequence`s, and whole."""
    query = torch.randn(length, 8, 64, requires_grad=True)
    key, value = (torch.randn(length, 4, 64, requires_grad=True) for _ in range(2))
    bounds = [*range(0, length, sequence), length]

    def packed() -> None:
        out = packed_attention(query, key, value, cu_seqlens=bounds, scale=0.125, softcap=softcap)
        out.sum().backward()

    def whole() -> None:
        rows = (part.unsqueeze(1) for part in (query, key, value))
        attention(*rows, scale=0.125, softcap=softcap).sum().backward()

    return {"packed": packed, "whole": whole}


def show_attention(length: int, repeat: int) -> None:
    """Print the cost of attention for sequences of several lengths."""
    print(f"attention over {length} tokens, forward and backward, wall (CPU) ms")
    print("| sequences of | soft cap | packed | whole row | whole / packed | length / sequence |")
    print("|---|---|---|---|---|---|")
    for softcap in (None, 50.0):
        for sequence in (64, 171, 512, 1024):
            found = medians(attend(length, sequence, softcap), repeat)
            shown = [f"{w * 1e3:.0f} ({p * 1e3:.0f})" for w, p in found.values()]
            ratio = found["whole"][1] / found["packed"][1]
            print(f"| {sequence} | {softcap} | {' | '.join(shown)} | {ratio:.1f} | "
                  f"{length / sequence:.1f} |", flush=True)  # fmt: skip


def steps(job: Job, name: str, tokens: dict[str, int]) -> Iterator[None]:
    """One optimizer step at each turn; counts its tokens in `tokens`."""
    for iteration in range(job.total):
        batches = job.feed.micro_batches(iteration * job.batch_size)
        totals, _ = train_batch(job.replica, batches)
        tokens[name] = tokens.get(name, 0) + totals.real_tokens * (iteration > 0)
        yield


def show_training(load: str, rows: str, packs: str, repeat: int) -> None:
    """Print tokens per second of training padded, padded to the longest, and packed."""
    packing = Manifest.read(DatasetFiles(Path(packs))).packing
    assert packing is not None, f"{packs} is not packed"
    many = max(1, round(packing.segments / packing.rows))
    variants = {
        "padded to --seq-length": [rows, many],
        "padded to the longest of a micro-batch": [rows, many, "--variable-seq-lengths"],
        "packed": [packs, 1],
    }
    tokens: dict[str, int] = {}
    jobs: dict[str, Callable[[], object]] = {}
    for name, (prefix, micro, *flags) in variants.items():
        settings, architecture = read_settings([str(word) for word in (
            "--load", load, "--data-path", prefix, "--seq-length", packing.capacity, "--lr", 1e-5,
            "--train-iters", repeat + 1, "--micro-batch-size", micro, "--global-batch-size",
            2 * micro, *flags)])  # fmt: skip
        inputs = read_inputs(settings, architecture, check_tokenizer=False)
        job = prepare(settings, inputs, torch.device("cpu"))
        turn = steps(job, name, tokens)
        jobs[name] = lambda turn=turn: next(turn)
        parallel_state.destroy_model_parallel()
    start_groups(settings, inputs.model.num_layers)
    print(f"training, {packing}; a micro-batch is one packed row or {many} conversations")
    print("| rows | s a step, wall (CPU) | tokens a step | tokens / CPU s |")
    print("|---|---|---|---|")
    for name, (wall, processor) in medians(jobs, repeat).items():
        each = tokens[name] / repeat
        print(f"| {name} | {wall:.2f} ({processor:.2f}) | {each:.0f} | {each / processor:.0f} |")


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of the packed row")
    parser.add_argument("--repeat", type=int, default=5, help="measured turns of each variant")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--load", help="Hugging Face directory of a model to train")
    parser.add_argument("--rows", help="prefix of a data set without --pack")
    parser.add_argument("--packs", help="prefix of the same conversations with --pack")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    show_attention(asked.length, asked.repeat)
    given = [asked.load, asked.rows, asked.packs]
    if any(given):
        if not all(given):
            parser.error("--load, --rows and --packs go together")
        init_distributed(detect("cpu"))
        show_training(*given, asked.repeat)
        shutdown_distributed()


if __name__ == "__main__":
    main()
