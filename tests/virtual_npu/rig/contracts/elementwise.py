"""Owns the kernels of norm, rotation, gated activations and loss, forward and backward."""

import torch
import torch.nn.functional as F

from rig.contracts.rules import FLOATS, demand

NORM = "npu_rms_norm"
ROTARY = "npu_rotary_mul"
LOSS = "npu_cross_entropy_loss"


def _norm_dims(a):
    x, gamma = a.input, a.gamma
    demand(2 <= x.dim() <= 8, NORM, f"input has {x.dim()} dimensions; 2 to 8", "DOC")
    k = gamma.dim()
    demand(
        0 < k and x.shape[x.dim() - k :] == gamma.shape,
        NORM,
        f"gamma {tuple(gamma.shape)} is no trailing part of {tuple(x.shape)}",
        "DOC",
    )
    pairs = {(half, torch.float32) for half in FLOATS} | {(t, t) for t in FLOATS}
    demand((x.dtype, gamma.dtype) in pairs, NORM, f"{x.dtype} with gamma {gamma.dtype}", "DOC")
    demand(x.numel() > 0, NORM, "empty input", "DOC")
    return tuple(range(x.dim() - k, x.dim()))


def rms_norm(a):
    dims = _norm_dims(a)
    wide = a.input.float()
    rstd = torch.rsqrt(wide.square().mean(dims, keepdim=True) + a.epsilon)
    return (wide * rstd * a.gamma.float()).to(a.input.dtype), rstd


def rms_norm_backward(a):
    dims = _norm_dims(a)
    normed, grad = a.input.float() * a.rstd, a.dy.float()
    weighted = grad * a.gamma.float()
    dx = a.rstd * (weighted - normed * (weighted * normed).mean(dims, keepdim=True))
    lead = tuple(range(a.input.dim() - a.gamma.dim()))
    return dx.to(a.input.dtype), (grad * normed).sum(
        lead
    )  # CPP RmsNormBackward: gamma's is float32


def _quarter(x, mode, sign=1):
    """x turned by a quarter; with sign -1 the transpose of that."""
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-sign * second, sign * first), -1)
    return torch.stack((-sign * x[..., 1::2], sign * x[..., 0::2]), -1).flatten(-2)


# leading dimensions in which cosine and sine may vary, by mode; the others are 1
_VARYING = {
    ("half", 4): [(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 0), (1, 1, 0), (1, 0, 0)],
    ("interleave", 4): [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
    ("half", 3): [(1, 0), (1, 1)],
    ("interleave", 3): [(1, 0)],
}


def _check_rotation(a):
    x, cos, sin, mode = a.input, a.r1, a.r2, a.rotary_mode
    demand(mode in ("half", "interleave"), ROTARY, f"rotary_mode {mode!r}", "CPP")
    demand(x.dim() in (3, 4), ROTARY, f"{x.dim()} dimensions; 3 or 4", "DOC")
    demand(all(t.dtype in FLOATS for t in (x, cos, sin)), ROTARY, "dtypes", "DOC")
    demand(x.shape[-1] % 2 == 0 and x.shape[-1] < 896, ROTARY, f"D is {x.shape[-1]}", "DOC")
    demand(
        cos.shape == sin.shape and cos.dim() == x.dim() and cos.shape[-1] == x.shape[-1],
        ROTARY,
        f"r1 {tuple(cos.shape)} for input {tuple(x.shape)}",
        "DOC",
    )
    lead = list(zip(x.shape[:-1], cos.shape[:-1], strict=False))
    demand(all(c in (1, n) for n, c in lead), ROTARY, "r1 does not broadcast to input", "DOC")
    fits = any(
        all(n == 1 or (c == n) == bool(v) for (n, c), v in zip(lead, pattern, strict=False))
        for pattern in _VARYING[mode, x.dim()]
    )
    demand(
        fits,
        ROTARY,
        f"r1 {tuple(cos.shape)} for {tuple(x.shape)} in mode {mode} is not in the table of layouts",
        "DOC",
    )
    largest = max(cos.abs().max().item(), sin.abs().max().item()) if cos.numel() else 0.0
    demand(
        largest <= 1 + 2**-7,
        ROTARY,
        f"r1 and r2 reach {largest:.3f}; they must lie in [-1, 1]",
        "DOC; 2^-7 for bfloat16's rounding",
    )


def _turns(a):
    return a.r1.to(a.input.dtype).float(), a.r2.to(a.input.dtype).float()  # CPP: input's dtype


def rotary_mul(a):
    _check_rotation(a)
    demand(a.rotate is None, ROTARY, "rotate has no backward pass", "DOC")
    cos, sin = _turns(a)
    x = a.input.float()
    return (x * cos + _quarter(x, a.rotary_mode) * sin).to(a.input.dtype)


def rotary_mul_backward(a):
    _check_rotation(a)
    cos, sin = _turns(a)
    grad, x, dtype = a.grad.float(), a.input.float(), a.input.dtype
    dx = grad * cos + _quarter(grad * sin, a.rotary_mode, -1)
    dcos = (grad * x).sum_to_size(a.r1.shape)
    dsin = (grad * _quarter(x, a.rotary_mode)).sum_to_size(a.r2.shape)
    return dx.to(dtype), dcos.to(dtype), dsin.to(dtype)


def _halves(a, operator):
    x = a.input
    demand(x.dtype in FLOATS and 1 <= x.dim() <= 8, operator, "dtype or rank", "DOC")
    demand(x.numel() > 0 and x.shape[a.dim] % 2 == 0, operator, f"shape {tuple(x.shape)}", "DOC")
    demand(x.is_contiguous(), operator, "input is not contiguous", "DOC npu_swiglu")
    return x.float().chunk(2, a.dim)


def swiglu(a):
    left, right = _halves(a, "npu_swiglu")
    return (F.silu(left) * right).to(a.input.dtype)


def swiglu_backward(a):
    left, right = _halves(a, "npu_swiglu")
    grad, s = a.grad_output.float(), torch.sigmoid(left)
    parts = (grad * right * s * (1 + left * (1 - s)), grad * left * s)
    return torch.cat(parts, a.dim).to(a.input.dtype)


def geglu(a):
    demand(a.approximate in (0, 1), "npu_geglu", f"approximate {a.approximate}; 0 or 1", "DOC")
    left, right = _halves(a, "npu_geglu")
    active, other = (left, right) if a.activate_left else (right, left)
    gelu = F.gelu(active, approximate="tanh" if a.approximate else "none")
    return (gelu * other).to(a.input.dtype), gelu.to(a.input.dtype)


def geglu_grad(a):
    left, right = _halves(a, "npu_geglu")
    active, other = (left, right) if a.activate_left else (right, left)
    grad = a.grad_output.float()
    mode = "tanh" if a.approximate else "none"
    inner = torch.ops.aten.gelu_backward(grad * other, active, approximate=mode)
    outer = grad * a.gelu.float()
    parts = (inner, outer) if a.activate_left else (outer, inner)
    return torch.cat(parts, a.dim).to(a.input.dtype)


def gelu(a):
    return F.gelu(a.input.float(), approximate=a.approximate).to(a.input.dtype)


def gelu_backward(a):
    grad = torch.ops.aten.gelu_backward(
        a.grad_output.float(), a.input.float(), approximate=a.approximate
    )
    return grad.to(a.input.dtype)


def aten_gelu(a):
    """F.gelu on an NPU: tanh, whatever it is asked for (CPP GeluOut, DOC npu_gelu)."""
    return torch.ops.aten.gelu(a.self, approximate="tanh")


def aten_gelu_backward(a):
    return torch.ops.aten.gelu_backward(a.grad_output, a.self, approximate="tanh")


def cross_entropy_loss(a):
    logits, target = a.input, a.target
    demand(logits.dtype in FLOATS and logits.dim() == 2, LOSS, "input must be [N, C]", "DOC")
    rows, classes = logits.shape
    demand(
        target.shape == (rows,) and target.dtype == torch.int64, LOSS, "target: int64 [N]", "DOC"
    )
    demand(0 < rows <= 200000, LOSS, f"N is {rows}; 1 to 200000", "DOC")
    demand(a.reduction in ("mean", "sum", "none"), LOSS, f"reduction {a.reduction!r}", "DOC")
    demand(not a.return_zloss and a.lse_square_scale_for_zloss == 0, LOSS, "z-loss", "DOC")
    demand(a.label_smoothing == 0 and a.weight is None, LOSS, "not simulated", "this rig")
    low, high = int(target.min()), int(target.max())
    demand(
        0 <= low and high < classes,
        LOSS,
        f"target reaches from {low} to {high}; [0, {classes}). "
        "A negative ignore_index ignores nothing",
        "DOC",
    )
    log_prob = torch.log_softmax(logits.float(), -1)
    loss = -log_prob.gather(1, target[:, None])[:, 0]
    if a.reduction != "none":
        loss = (loss.mean() if a.reduction == "mean" else loss.sum()).reshape(1)
    dtype = logits.dtype  # DOC: the loss has the logits' dtype
    return (
        loss.to(dtype),
        log_prob.to(dtype),
        torch.zeros_like(loss, dtype=dtype),
        torch.zeros(rows, dtype=dtype),
    )


def cross_entropy_loss_backward(a):
    rows = len(a.target)
    grad = a.grad_loss.float().expand(rows) / (rows if a.reduction == "mean" else 1)
    chance = a.log_prob.float().exp()
    chance[torch.arange(rows), a.target] -= 1
    return (chance * grad[:, None]).to(a.log_prob.dtype)
