"""Every kernel that runs here against the plain one: milliseconds of forward and backward.

    python benchmarks/kernels.py [--device cpu|cuda|npu] [--tokens 1024] [--repeats 5]

Times are the least of the repeats: processor time on a CPU, where others may use the machine, and
the clock's elsewhere.
"""

import argparse
import time
from collections.abc import Callable

import torch

from mindspeed_llm.device.detect import detect
from mindspeed_llm.kernels.dispatch import Need
from mindspeed_llm.kernels.table import candidates

HIDDEN, FFN, HEADS, GROUPS, DIM = 576, 1536, 9, 3, 64  # SmolLM2 135M


def attention(
    softcap: float | None = None, window: int | None = None
) -> Callable[..., torch.Tensor]:
    """Causal attention of one row."""
    return lambda kernel, q, k, v: kernel(q, k, v, scale=0.125, softcap=softcap, window=window)


def packed(kernel: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor,
           v: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """The same row as eight sequences."""
    bounds = [len(q) * part // 8 for part in range(9)]
    return kernel(q, k, v, cu_seqlens=bounds, scale=0.125)


def rotate(kernel: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Rotation of all heads."""
    return kernel(x, torch.ones(len(x), 1, 1, DIM, device=x.device))


def cases(tokens: int) -> list[tuple[str, str, dict, tuple, Callable[..., torch.Tensor]]]:
    """(name, operation, need, shapes, call)"""
    row = ((tokens, 1, HEADS, DIM), (tokens, 1, GROUPS, DIM), (tokens, 1, GROUPS, DIM))
    one = tuple((shape[0], *shape[2:]) for shape in row)
    both = ((tokens, 1, 2 * FFN),)

    def norm(kernel: Callable[..., torch.Tensor], x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return kernel(x, w, 1e-6, zero_centered=False)

    def gated(kernel: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return kernel(x)

    return [
        ("RMSNorm", "rms_norm", {}, ((tokens, 1, HIDDEN), (HIDDEN,)), norm),
        ("rotary", "rotary", {}, row[:1], rotate),
        ("SwiGLU", "swiglu", {}, both, gated),
        ("GeGLU", "geglu_tanh", {}, both, gated),
        ("attention", "attention", {}, row, attention()),
        ("attention, window 256", "attention", {"window": 256}, row, attention(window=256)),
        ("attention, soft cap", "attention", {"softcap": 50.0}, row, attention(softcap=50.0)),
        ("attention, 8 sequences", "packed_attention", {}, one, packed),
    ]


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds when everything asked for so far is done."""

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def measure(run: Callable[[], torch.Tensor], inputs: list[torch.Tensor], now: Callable[[], float],
            repeats: int) -> float:  # fmt: skip
    """Milliseconds of forward and backward."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        start = now()
        torch.autograd.grad(run().sum(), inputs)
        times.append(now() - start)
    return min(times[1:]) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    device, dtype = detect(args.device).torch_device(), getattr(torch, args.dtype)
    now = clock(device)
    print(f"{device}, {args.dtype}, {args.tokens} tokens, {torch.get_num_threads()} threads\n")
    for name, op, need, shapes, call in cases(args.tokens):
        torch.manual_seed(0)
        inputs = [torch.randn(s, device=device, dtype=dtype, requires_grad=True) for s in shapes]
        wanted = Need(dtype=dtype, head_dim=DIM, **need)
        for one in candidates(op, device.type):
            cause = one.available() or one.fits(wanted)
            if cause is not None:
                print(f"{name:24} {one.kernel:44} -  {cause}")
                continue
            kernel = one.load()
            spent = measure(lambda k=kernel, i=inputs, c=call: c(k, *i), inputs, now, args.repeats)
            print(f"{name:24} {one.kernel:44} {spent:9.2f} ms")


if __name__ == "__main__":
    main()
