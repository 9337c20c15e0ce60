"""Every kernel that runs here against the plain one and what the machine allows: milliseconds of
forward and backward.

    python benchmarks/kernels.py [--device cpu|cuda|npu] [--tokens 1024] [--repeats 5]

Times are the least of the repeats: processor time on a CPU, where others may use the machine, and
the clock's elsewhere. The limit is what has to be read and written at the speed of a large copy, or
the products of attention at the speed of a large product of matrices, whichever takes longer; both
speeds are measured first.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_llm.device.detect import detect
from mindspeed_llm.kernels.dispatch import Need
from mindspeed_llm.kernels.table import candidates

HIDDEN, FFN, HEADS, GROUPS, DIM = 576, 1536, 9, 3, 64  # SmolLM2 135M
WINDOW, SEQUENCES = 256, 8


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        name, op, need: what is shown, the row of the table, and what is needed of it.
        shapes: of the inputs.
        call: runs a kernel on them.
        moved: numbers that have to be read or written, forward and backward.
        products: multiply-adds of attention, forward and backward (the scores are made again).
    """

    name: str
    op: str
    need: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    call: Callable[..., torch.Tensor]
    moved: int
    products: int = 0


def attention(
    softcap: float | None = None, window: int | None = None
) -> Callable[..., torch.Tensor]:
    """Causal attention of one row."""
    return lambda kernel, q, k, v: kernel(q, k, v, scale=0.125, softcap=softcap, window=window)


def packed(kernel: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor,
           v: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """The same row as several sequences."""
    bounds = [len(q) * part // SEQUENCES for part in range(SEQUENCES + 1)]
    return kernel(q, k, v, cu_seqlens=bounds, scale=0.125)


def rotate(kernel: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Rotation of all heads."""
    return kernel(x, torch.ones(len(x), 1, 1, DIM, device=x.device))


def norm(kernel: Callable[..., torch.Tensor], x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """RMSNorm of every token."""
    return kernel(x, w, 1e-6, zero_centered=False)


def gated(kernel: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Gate and up projection side by side."""
    return kernel(x)


def cases(tokens: int) -> list[Case]:
    """All of them, for a row of `tokens` tokens."""
    row = ((tokens, 1, HEADS, DIM), (tokens, 1, GROUPS, DIM), (tokens, 1, GROUPS, DIM))
    one = tuple((shape[0], *shape[2:]) for shape in row)
    both = ((tokens, 1, 2 * FFN),)
    width = HEADS * DIM
    # forward: q, k, v -> out; backward: those and the gradient -> three gradients
    moved = tokens * (4 * width + 6 * GROUPS * DIM)

    def products(pairs: int) -> int:
        """Two products a pair of positions forward, five backward."""
        return 7 * width * pairs

    causal, length = tokens * (tokens + 1) // 2, tokens // SEQUENCES
    seen = sum(min(i + 1, WINDOW) for i in range(tokens))
    parts = SEQUENCES * length * (length + 1) // 2
    return [
        Case("RMSNorm", "rms_norm", {}, ((tokens, 1, HIDDEN), (HIDDEN,)), norm,
             5 * tokens * HIDDEN),
        Case("rotary", "rotary", {}, row[:1], rotate, 4 * tokens * width),
        Case("SwiGLU", "swiglu", {}, both, gated, 8 * tokens * FFN),
        Case("GeGLU", "geglu_tanh", {}, both, gated, 8 * tokens * FFN),
        Case("attention", "attention", {}, row, attention(), moved, products(causal)),
        Case(f"attention, window {WINDOW}", "attention", {"window": WINDOW}, row,
             attention(window=WINDOW), moved, products(seen)),
        Case("attention, soft cap", "attention", {"softcap": 50.0}, row, attention(softcap=50.0),
             moved, products(causal)),
        Case(f"attention, {SEQUENCES} sequences", "packed_attention", {}, one, packed, moved,
             products(parts)),
    ]  # fmt: skip


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds when everything asked for so far is done."""

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def least(run: Callable[[], Any], now: Callable[[], float], repeats: int) -> float:
    """Seconds of the quickest of the repeats."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        start = now()
        run()
        times.append(now() - start)
    return min(times[1:])


def speeds(device: torch.device, dtype: torch.dtype, now: Callable[[], float]) -> tuple[float, ...]:
    """(bytes of a copy, multiply-adds of a product of matrices) a second."""
    large = torch.randn(1 << 24, device=device, dtype=dtype)
    copy = torch.empty_like(large)
    side = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return (
        2 * large.nbytes / least(lambda: copy.copy_(large), now, 5),
        side**3 / least(lambda: matrix @ matrix, now, 5),
    )


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
    print(f"{device}, {args.dtype}, {args.tokens} tokens, {torch.get_num_threads()} threads")
    copied, multiplied = speeds(device, dtype, now)
    print(f"copy {copied / 1e9:.1f} GB/s, products {2 * multiplied / 1e9:.0f} GFLOP/s\n")
    for case in cases(args.tokens):
        torch.manual_seed(0)
        inputs = [
            torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
            for shape in case.shapes
        ]
        limit = max(case.moved * dtype.itemsize / copied, case.products / multiplied)
        wanted = Need(dtype=dtype, head_dim=DIM, **case.need)
        for one in candidates(case.op, device.type):
            cause = one.available() or one.fits(wanted)
            if cause is not None:
                print(f"{case.name:24} {one.kernel:44} -  {cause}")
                continue
            kernel = one.load()
            ones = torch.ones_like(case.call(kernel, *inputs))

            def run(case: Case = case, kernel: Any = kernel, inputs: Any = inputs,
                    ones: torch.Tensor = ones) -> None:  # fmt: skip
                torch.autograd.grad(case.call(kernel, *inputs), inputs, ones)

            spent = least(run, now, args.repeats)
            print(f"{case.name:24} {one.kernel:44} {spent * 1e3:9.2f} ms, {spent / limit:5.1f} "
                  f"times the limit of {limit * 1e3:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
