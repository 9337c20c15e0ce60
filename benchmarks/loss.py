"""Memory and time of output layer and loss: a chunk of logits at a time against whole logits.

    python benchmarks/loss.py --tokens 4096 --vocabulary 262144 --hidden 256

Peak memory is that of a process of its own for each variant, over what it held before (Linux counts
it); CPU seconds are shown beside wall seconds, because on a shared machine only they repeat.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

from mindspeed_llm.kernels.cross_entropy import summed_cross_entropy
from mindspeed_llm.kernels.table import kernel


def whole_logits(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    """The same sum with all logits at once, as a model that returns logits computes it."""
    logits = hidden @ weight.t()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def measure(variant: str, asked: argparse.Namespace, answer: Connection) -> None:
    """Send GiB of peak memory above the inputs, and the best wall and CPU seconds of `repeat`."""
    torch.set_num_threads(asked.threads)
    dtype = torch.bfloat16 if asked.bf16 else torch.float32
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(asked.tokens, asked.hidden, generator=generator).to(dtype)
    weight = (torch.randn(asked.vocabulary, asked.hidden, generator=generator) * 0.02).to(dtype)
    targets = torch.randint(0, asked.vocabulary, (asked.tokens,), generator=generator)
    hidden.requires_grad_(), weight.requires_grad_()
    multiply = kernel("linear", "cpu", dtype=dtype)  # as training's loss does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = [], []
    for _ in range(asked.repeat):
        hidden.grad = weight.grad = None
        start, started = time.perf_counter(), time.process_time()
        if variant == "whole":
            loss = whole_logits(hidden, weight, targets, asked.softcap)
        else:
            loss = summed_cross_entropy(
                hidden, weight, targets, softcap=asked.softcap, multiply=multiply
            )
        loss.backward()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.send((peak / 2**20, min(wall), min(processor), loss.item()))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="supervised tokens")
    parser.add_argument("--vocabulary", type=int, default=262144, help="rows of the output layer")
    parser.add_argument("--hidden", type=int, default=256, help="width of the hidden states")
    parser.add_argument("--softcap", type=float, help="of the logits, e.g. 30")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--repeat", type=int, default=3, help="turns; the best counts")
    asked = parser.parse_args()
    print("| logits | peak GiB above weights and inputs | wall (CPU) s | loss |")
    print("|---|---|---|---|")
    processes = multiprocessing.get_context("spawn")
    for variant in ("whole", "in chunks"):
        ours, theirs = processes.Pipe()
        worker = processes.Process(target=measure, args=(variant, asked, theirs))
        worker.start()
        theirs.close()
        try:
            peak, wall, processor, loss = ours.recv()
        except EOFError:
            print(f"| {variant} | more than this machine has | | |")
            continue
        worker.join()
        print(f"| {variant} | {peak:.2f} | {wall:.1f} ({processor:.1f}) | {loss:.2f} |", flush=True)


if __name__ == "__main__":
    main()
