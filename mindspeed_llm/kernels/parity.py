"""Owns the comparison of every kernel with the plain one in float32 on the CPU, values and
gradients; knows no layer and prints nothing. `mindspeed-llm selfcheck` and the tests of the devices
run it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from mindspeed_llm.kernels.cross_entropy import summed_cross_entropy
from mindspeed_llm.kernels.dispatch import Candidate, Need
from mindspeed_llm.kernels.optimizer import Step
from mindspeed_llm.kernels.table import candidates

# Largest difference, as a part of the largest value: of sums in another order, and of bfloat16's
# eight bits through a few operations.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
Kernel = Callable[..., Any]
Tensors = list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Check:
    """One operation in one manner.

    Attributes:
        name: what is shown.
        op: operation of the table.
        need: of the kernel, besides the dtype.
        shapes: of the floating inputs.
        run: calls a kernel with the inputs and gives what is compared.
        gradients: whether gradients of the inputs are compared too.
    """

    name: str
    op: str
    need: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    run: Callable[[Kernel, Tensors], torch.Tensor]
    gradients: bool = True


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one kernel: `error` is the largest difference as a part of the largest value,
    `reason` why it was skipped or failed."""

    name: str
    dtype: str
    kernel: str
    state: Literal["pass", "fail", "skipped"]
    error: float | None
    reason: str


def _norm(zero_centered: bool) -> Check:
    def run(kernel: Kernel, inputs: Tensors) -> torch.Tensor:
        return kernel(*inputs, 1e-6, zero_centered=zero_centered)

    return Check("RMSNorm 1 + w" if zero_centered else "RMSNorm", "rms_norm",
                 {"zero_centered": zero_centered}, ((9, 2, 64), (64,)), run)  # fmt: skip


def _rotary(name: str, turning: int, interleaved: bool = False, scale: float = 1.0) -> Check:
    def run(kernel: Kernel, inputs: Tensors) -> torch.Tensor:
        angle = torch.linspace(-3, 3, 9 * turning, device=inputs[0].device).view(9, 1, 1, turning)
        return kernel(inputs[0], angle, interleaved=interleaved, scale=scale)

    need = {"head_dim": 32, "interleaved": interleaved}
    return Check(f"rotary, {name}", "rotary", need, ((9, 2, 4, 32),), run)


def _gated(op: str) -> Check:
    return Check(op, op, {}, ((9, 2, 96),), lambda kernel, inputs: kernel(inputs[0]))


def _linear() -> Check:
    return Check("linear layer", "linear", {}, ((9, 2, 24), (40, 24)),
                 lambda kernel, inputs: kernel(*inputs))  # fmt: skip


def _dense(name: str, sq: int = 19, sk: int = 19, op: str = "attention", hidden: bool = False,
           **how: Any) -> Check:  # fmt: skip
    def run(kernel: Kernel, inputs: Tensors) -> torch.Tensor:
        options = dict(how)
        if hidden:
            cover = torch.zeros(2, 1, sq, sk, dtype=torch.bool, device=inputs[0].device)
            cover[0, :, :, 3] = True
            cover[1, :, :, :2] = True  # its first rows see nothing
            options["hidden"] = cover
        return kernel(*inputs, scale=0.3, **options)

    shapes = ((sq, 2, 4, 32), (sk, 2, 2, 32), (sk, 2, 2, 32))
    return Check(f"{name} attention", op, {"head_dim": 32, **how}, shapes, run,
                 gradients=op == "attention")  # fmt: skip


def _packed(name: str, **how: Any) -> Check:
    def run(kernel: Kernel, inputs: Tensors) -> torch.Tensor:
        return kernel(*inputs, cu_seqlens=[0, 7, 8, 20], scale=0.3, **how)

    shapes = ((20, 4, 32), (20, 2, 32), (20, 2, 32))
    need = {"head_dim": 32, **how}
    return Check(f"packed {name} attention", "packed_attention", need, shapes, run)


def _loss(name: str, softcap: float | None) -> Check:
    def run(kernel: Kernel, inputs: Tensors) -> torch.Tensor:
        targets = torch.arange(11, device=inputs[0].device) * 3 % 29
        return summed_cross_entropy(*inputs, targets, softcap=softcap, softmax=kernel)

    return Check(name, "cross_entropy", {}, ((11, 16), (29, 16)), run)


def _adamw() -> Check:
    def run(kernel: Kernel, inputs: Tensors) -> torch.Tensor:
        weight, grad = inputs[0].clone(), inputs[1]
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        for count in (1, 2, 3):
            step = Step(count, lr=1e-2, decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8,
                        decoupled=True, correct=True)  # fmt: skip
            kernel([weight], [grad * count], [first], [second], step)
        return weight

    return Check("AdamW", "adamw", {}, ((7, 5), (7, 5)), run, gradients=False)


CHECKS: tuple[Check, ...] = (
    _norm(False),
    _norm(True),
    _rotary("halves", 32),
    _rotary("neighbours", 32, interleaved=True),
    _rotary("partial", 16),
    _rotary("YaRN scale", 32, scale=1.3),
    _gated("swiglu"),
    _gated("geglu_tanh"),
    _gated("geglu_erf"),
    _gated("gelu_erf"),
    _linear(),
    _dense("causal"),
    _dense("sliding window", window=5),
    _dense("soft-capped", softcap=2.0),
    _dense("soft-capped window", softcap=2.0, window=5),
    _dense("masked", hidden=True),
    _dense("long causal", sq=300, sk=300),
    _dense("long soft-capped window", sq=300, sk=300, softcap=2.0, window=40),
    _dense("fewer queries than keys in", sq=4),
    _packed("causal"),
    _packed("sliding window", window=5),
    _packed("soft-capped", softcap=2.0),
    _dense("decoding one token", sq=1, op="decode_attention"),
    _dense("decoding in a window", sq=1, op="decode_attention", window=5),
    _dense("prefill on a cache", sq=6, op="decode_attention"),
    _dense("prefill in a window", sq=6, op="decode_attention", window=5),
    _dense("decoding soft-capped", sq=1, op="decode_attention", softcap=2.0),
    _loss("linear + cross entropy", None),
    _loss("linear + capped cross entropy", 3.0),
    _adamw(),
    Check("gradient norm", "grad_norm", {}, ((5, 4), (9,)),
          lambda kernel, inputs: kernel(inputs), gradients=False),
)  # fmt: skip


def compare(device: torch.device, dtype: torch.dtype) -> Iterator[Result]:
    """Every check on every candidate for `device`; those that cannot run are skipped by name."""
    for check in CHECKS:
        need = Need(dtype=dtype, **check.need)
        for candidate in candidates(check.op, device.type):
            yield _result(check, candidate, device, need)


def _result(check: Check, candidate: Candidate, device: torch.device, need: Need) -> Result:
    name = str(need.dtype).removeprefix("torch.")
    cause = candidate.available() or candidate.fits(need)
    if cause is not None:
        return Result(check.name, name, candidate.kernel, "skipped", None, cause)
    inputs = _inputs(check, need.dtype)
    plain = candidates(check.op, "cpu")[-1]
    try:
        found = _answers(check, candidate.load(), [one.to(device) for one in inputs])
    except (RuntimeError, TypeError, ValueError, ImportError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return Result(check.name, name, candidate.kernel, "fail", None, reason)
    wanted = _answers(check, plain.load(), [one.float() for one in inputs])
    pairs = zip(found, wanted, strict=True)
    error = torch.tensor([_distance(a, b) for a, b in pairs]).max().item()  # NaN, if one is
    allowed = ALLOWED[need.dtype]
    good = error <= allowed  # False for NaN, too
    reason = "" if good else f"differs by {error:.1e} of the largest value; {allowed:.0e} allowed"
    return Result(check.name, name, candidate.kernel, "pass" if good else "fail", error, reason)


def _inputs(check: Check, dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(1234)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in check.shapes]


def _answers(check: Check, kernel: Kernel, inputs: Tensors) -> Tensors:
    """The output, and the gradients of a sum that weighs its elements differently; on the CPU."""
    inputs = [one.detach().requires_grad_(check.gradients) for one in inputs]
    with torch.set_grad_enabled(check.gradients):
        out = check.run(kernel, inputs)
        answers = [out.detach()]
        if check.gradients:
            weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
            if out.dim() == 0:
                weights = torch.ones_like(out)
            answers += torch.autograd.grad((out.float() * weights).sum(), inputs)
    return [one.float().cpu() for one in answers]


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
