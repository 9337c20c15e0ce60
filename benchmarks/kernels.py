"""Every kernel that runs here against the same in single operators of torch and against what the
machine allows: milliseconds of forward and backward.

    python benchmarks/kernels.py [--device cpu|cuda|npu] [--tokens 1024] [--repeats 5] [--only norm]

Times are the least of the repeats: processor time on a CPU, where others may use the machine, and
the clock's elsewhere. The limit is what has to be read and written at the speed of a large copy, or
the products at the speed of a large product of matrices, whichever takes longer; both speeds are
measured first. The single operators ("written out") are what transformers' models do.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mindspeed_llm.device.detect import detect
from mindspeed_llm.kernels import table
from mindspeed_llm.kernels.cross_entropy import summed_cross_entropy
from mindspeed_llm.kernels.dispatch import Need
from mindspeed_llm.kernels.optimizer import Step
from mindspeed_llm.kernels.rotary import angles, inverse_frequencies

HIDDEN, FFN, HEADS, GROUPS, DIM, WORDS = 576, 1536, 9, 3, 64, 49152  # SmolLM2 135M
WINDOW, CAP, SEQUENCES = 256, 50.0, 8
SCALE = DIM**-0.5
MATRICES, PER_MATRIX = 30, 576 * 1536  # of AdamW and the norm of gradients
Tensors = list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        name, op, need: what is shown, the row of the table, and what is needed of it.
        shapes: of the inputs.
        call: runs a kernel on them.
        plain: the same in single operators.
        moved: numbers that have to be read or written, forward and backward.
        products: multiply-adds, forward and backward (the scores are made again).
        gradients: whether there is a backward pass.
        spread: of the random inputs.
    """

    name: str
    op: str
    need: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    call: Callable[..., Any]
    plain: Callable[..., Any]
    moved: int
    products: int = 0
    gradients: bool = True
    spread: float = 1.0


def norm(zero_centered: bool, tokens: int) -> Case:
    """RMSNorm of every token."""

    def plain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (wide * (1.0 + w.float())).to(x.dtype) if zero_centered else w * wide.to(x.dtype)

    return Case(f"RMSNorm, {'1 + w' if zero_centered else 'w'}", "rms_norm",
                {"zero_centered": zero_centered}, ((tokens, 1, HIDDEN), (HIDDEN,)),
                lambda kernel, x, w: kernel(x, w, 1e-6, zero_centered=zero_centered), plain,
                5 * tokens * HIDDEN)  # fmt: skip


def rotary(name: str, tokens: int, turning: int = DIM, interleaved: bool = False,
           scale: float = 1.0, starts: int = 1) -> Case:  # fmt: skip
    """Rotation of all query heads; `starts` sequences of a packed row begin at position 0."""
    table = angles(tokens, inverse_frequencies(turning, 1e4))
    table = table.index_select(0, torch.arange(tokens) % (tokens // starts))

    def call(kernel: Any, x: torch.Tensor) -> torch.Tensor:
        return kernel(x, table.to(x.device), interleaved=interleaved, scale=scale)

    def plain(x: torch.Tensor) -> torch.Tensor:
        moving, rest = x[..., :turning], x[..., turning:]
        angle = table.to(x.device)
        if interleaved:
            other = torch.stack((-moving[..., 1::2], moving[..., ::2]), dim=-1).flatten(-2)
        else:
            other = torch.cat((-moving[..., turning // 2 :], moving[..., : turning // 2]), dim=-1)
        cos, sin = ((wave * scale).to(x.dtype) for wave in (angle.cos(), angle.sin()))
        return torch.cat((moving * cos + other * sin, rest), dim=-1)

    return Case(f"rotary, {name}", "rotary", {"interleaved": interleaved},
                ((tokens, 1, HEADS, DIM),), call, plain, 4 * tokens * HEADS * DIM)  # fmt: skip


def gated(name: str, op: str, function: Callable[..., torch.Tensor], tokens: int) -> Case:
    """Gate and up projection side by side."""

    def plain(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return function(gate) * up

    return Case(name, op, {}, ((tokens, 1, 2 * FFN),), lambda kernel, x: kernel(x), plain,
                8 * tokens * FFN)  # fmt: skip


def linear(tokens: int, width: int, out: int) -> Case:
    """A layer's product, and its two gradients."""
    moved = 3 * (tokens * width + tokens * out + width * out)
    return Case(f"linear, {width} -> {out}", "linear", {}, ((tokens, 1, width), (out, width)),
                lambda kernel, x, w: kernel(x, w), F.linear, moved,
                3 * tokens * width * out)  # fmt: skip


def hidden_keys(tokens: int, keys: int, window: int | None, starts: int) -> torch.Tensor:
    """Boolean [tokens, keys], True where a query must not look."""
    at, key = torch.arange(keys - tokens, keys)[:, None], torch.arange(keys)[None]
    length = keys // starts
    hidden = (key > at) | (key // length != at // length)
    return hidden if window is None else hidden | (key <= at - window)


def attention(name: str, tokens: int, keys: int, window: int | None = None,
              softcap: float | None = None, starts: int = 1,
              op: str = "attention") -> Case:  # fmt: skip
    """Causal attention of one row, whole or of `starts` sequences, or over cached keys."""
    hidden, packed = hidden_keys(tokens, keys, window, starts), op == "packed_attention"
    how: dict[str, Any] = {"scale": SCALE, "window": window, "softcap": softcap}
    if packed:
        how["cu_seqlens"] = [tokens * part // starts for part in range(starts + 1)]

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if packed:
            q, k, v = (one.unsqueeze(1) for one in (q, k, v))
        q, k, v = (one.permute(1, 2, 0, 3) for one in (q, k, v))
        k, v = (one.repeat_interleave(HEADS // GROUPS, dim=1) for one in (k, v))
        scores = torch.matmul(q, k.transpose(-1, -2)) * SCALE
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(hidden.to(q.device), float("-inf"))
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        out = torch.matmul(weights, v).permute(2, 0, 1, 3).flatten(2)
        return out.squeeze(1) if packed else out

    width, some = HEADS * DIM, GROUPS * DIM
    row = () if packed else (1,)
    shapes = tuple((length, *row, heads, DIM) for length, heads in (
        (tokens, HEADS), (keys, GROUPS), (keys, GROUPS)))  # fmt: skip
    trained, seen = op != "decode_attention", int((~hidden).sum())
    # forward: q, k, v -> out; backward: those and the gradient -> three gradients
    moved = tokens * (4 * width + 6 * some) if trained else 2 * tokens * width + 2 * keys * some
    need = {"window": window, "softcap": softcap}
    return Case(name, op, need, shapes, lambda kernel, *qkv: kernel(*qkv, **how), plain, moved,
                (7 if trained else 2) * width * seen, trained)  # fmt: skip


def loss(tokens: int) -> Case:
    """Output layer and cross entropy of the supervised tokens of a row."""
    targets = torch.arange(tokens) * 7919 % WORDS

    def call(kernel: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wanted = targets.to(hidden.device)
        multiply = table.kernel("linear", hidden.device.type, dtype=hidden.dtype)
        return summed_cross_entropy(hidden, weight, wanted, softmax=kernel, multiply=multiply)

    def plain(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = F.linear(hidden, weight).float()
        return F.cross_entropy(logits, targets.to(hidden.device), reduction="sum")

    # Wide logits would have chances too small for normal numbers, which a CPU is slow with.
    size = WORDS * HIDDEN
    return Case(f"linear + cross entropy, {tokens} tokens", "cross_entropy", {},
                ((tokens, HIDDEN), (WORDS, HIDDEN)), call, plain, 3 * size,
                3 * tokens * size, spread=0.2)  # fmt: skip


def adamw() -> Case:
    """One step of many matrices."""
    step = Step(3, lr=1e-4, decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8, decoupled=True,
                correct=True)  # fmt: skip

    def parts(given: Tensors) -> tuple[Tensors, ...]:
        params, grads, first, second = (list(one.unbind(0)) for one in given)
        return params, grads, first, second

    def call(kernel: Any, *given: torch.Tensor) -> None:
        given[3].abs_()  # of squares
        kernel(*parts(list(given)), step)

    def plain(*given: torch.Tensor) -> None:
        given[3].abs_()
        for param, grad, first, second in zip(*parts(list(given)), strict=True):
            param.mul_(1 - step.lr * step.decay)
            first.lerp_(grad, 1 - step.beta1)
            second.mul_(step.beta2).addcmul_(grad, grad, value=1 - step.beta2)
            root = second.sqrt().div_((1 - step.beta2**step.count) ** 0.5).add_(step.eps)
            param.addcdiv_(first, root, value=-step.lr / (1 - step.beta1**step.count))

    # the sign of the second means is taken away in each run: two more passes over one of four
    return Case("AdamW", "adamw", {}, ((MATRICES, PER_MATRIX),) * 4, call, plain,
                9 * MATRICES * PER_MATRIX, gradients=False)  # fmt: skip


def gradient_norm() -> Case:
    """Of many matrices."""
    return Case("gradient norm", "grad_norm", {}, ((PER_MATRIX,),) * MATRICES,
                lambda kernel, *grads: kernel(grads),
                lambda *grads: sum(grad.float().pow(2).sum() for grad in grads) ** 0.5,
                MATRICES * PER_MATRIX, gradients=False)  # fmt: skip


def cases(tokens: int) -> list[Case]:
    """All of them, for a row of `tokens` tokens."""
    packed: dict[str, Any] = {"starts": SEQUENCES, "op": "packed_attention"}
    return [
        norm(False, tokens),
        norm(True, tokens),
        rotary("halves", tokens),
        rotary("neighbours", tokens, interleaved=True),
        rotary("half of the dimensions", tokens, turning=DIM // 2),
        rotary(f"{SEQUENCES} sequences", tokens, starts=SEQUENCES),
        rotary("YaRN's factor", tokens, scale=1.2),
        gated("SwiGLU", "swiglu", F.silu, tokens),
        gated("GeGLU, tanh", "geglu_tanh", lambda x: F.gelu(x, approximate="tanh"), tokens),
        gated("GeGLU, erf", "geglu_erf", F.gelu, tokens),
        linear(tokens, HIDDEN, 2 * FFN),
        linear(tokens, FFN, HIDDEN),
        attention("attention", tokens, tokens),
        attention(f"attention, window {WINDOW}", tokens, tokens, window=WINDOW),
        attention("attention, soft cap", tokens, tokens, softcap=CAP),
        attention(f"{SEQUENCES} sequences", tokens, tokens, **packed),
        attention(f"{SEQUENCES} sequences, window {WINDOW // 4}", tokens, tokens,
                  window=WINDOW // 4, **packed),
        attention(f"{SEQUENCES} sequences, soft cap", tokens, tokens, softcap=CAP, **packed),
        attention(f"decoding, {tokens} cached", 1, tokens, op="decode_attention"),
        attention(f"32 new tokens, {tokens} cached", 32, tokens, op="decode_attention"),
        loss(tokens // 4),
        adamw(),
        gradient_norm(),
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
        start, count = now(), 0
        while count == 0 or now() - start < 0.02:  # short ones many times: clocks have steps
            run()
            count += 1
        times.append((now() - start) / count)
    return min(times[1:])


def speeds(device: torch.device, dtype: torch.dtype, now: Callable[[], float]) -> tuple[float, ...]:
    """(bytes of a copy, multiply-adds of the quicker product of matrices) a second."""
    # As many bytes in every dtype, more than a cache holds.
    large = torch.randn((1 << 27) // dtype.itemsize, device=device, dtype=dtype)
    copy = torch.empty_like(large)
    side = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    multiply = table.kernel("linear", device.type, dtype=dtype)
    products = (lambda: matrix @ matrix, lambda: multiply(matrix, matrix))
    return (
        2 * large.nbytes / least(lambda: copy.copy_(large), now, 5),
        side**3 / min(least(product, now, 5) for product in products),
    )


def timed(case: Case, call: Callable[..., Any], inputs: Tensors, now: Callable[[], float],
          repeats: int) -> float:  # fmt: skip
    """Seconds of `call`, with the gradients of all inputs if the case has any."""
    if not case.gradients:
        with torch.no_grad():
            return least(lambda: call(*inputs), now, repeats)
    ones = torch.ones_like(call(*inputs))
    return least(lambda: torch.autograd.grad(call(*inputs), inputs, ones), now, repeats)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--only", default="", help="operations whose name has this in it")
    args = parser.parse_args()
    device, dtype = detect(args.device).torch_device(), getattr(torch, args.dtype)
    now = clock(device)
    print(f"{device}, {args.dtype}, {args.tokens} tokens, {torch.get_num_threads()} threads")
    copied, multiplied = speeds(device, dtype, now)
    print(f"copy {copied / 1e9:.1f} GB/s, products {2 * multiplied / 1e9:.0f} GFLOP/s\n")
    for case in (one for one in cases(args.tokens) if args.only in one.name):
        torch.manual_seed(0)
        inputs = [
            torch.randn(shape, device=device, dtype=dtype)
            .mul_(case.spread)
            .requires_grad_(case.gradients)
            for shape in case.shapes
        ]
        limit = max(case.moved * dtype.itemsize / copied, case.products / multiplied)
        plain = timed(case, case.plain, inputs, now, args.repeats)
        print(f"{case.name:36} {'written out':40} {plain * 1e3:9.3f} ms {plain / limit:6.1f} "
              f"times the limit of {limit * 1e3:.3f}")  # fmt: skip
        wanted = Need(dtype=dtype, head_dim=DIM, **case.need)
        ones = {one.place: one for one in reversed(table.candidates(case.op, device.type))
                if one.fits(wanted) is None}  # fmt: skip
        for one in reversed(ones.values()):
            cause = one.available()
            if cause is not None:
                print(f"{'':36} {one.kernel:40} -  {cause}")
                continue
            kernel = one.load()
            spent = timed(case, functools.partial(case.call, kernel), inputs, now, args.repeats)
            print(f"{'':36} {one.kernel:40} {spent * 1e3:9.3f} ms {spent / limit:6.1f} "
                  f"times it, {plain / spent:5.2f} times as fast as written out")  # fmt: skip


if __name__ == "__main__":
    main()
