"""Owns the calls of torch_npu's fused operators, in the shapes and meanings of the plain kernels.
It imports no torch_npu: the operators are there once `device.npu` has loaded it, and `table` asks
for them. It knows no layer.

The rules that a call keeps are those of op-plugin's documents
(docs/zh/custom_APIs/torch_npu/torch_npu-<operator>.md) and, where named, of its C++ kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from mindspeed_llm.kernels import activation
from mindspeed_llm.kernels import rms_norm as plain_norm
from mindspeed_llm.kernels.attention import expect, visible_keys

MASK = 2048  # side of the compressed mask, whatever the length is
SEQUENCES = 1024  # of one TND call; the documents name 1K in one place and 2K in another
_FAR = 2**31 - 1  # the operators' own "as far as you like"


def refuse_gradients(op: str, *tensors: torch.Tensor) -> None:
    """Raise where gradients would vanish: `op` has no derivative (op-plugin, derivatives.yaml).

    Without it autograd passes through such an operator and the weights before it never learn.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{op} has no derivative and must not run where gradients are needed")


@functools.cache
def compressed_mask(device: torch.device) -> torch.Tensor:
    """Boolean [2048, 2048], True above the diagonal: what sparse modes 2, 3 and 4 ask for.

    True means hidden, the opposite of scaled_dot_product_attention's.
    """
    return torch.ones(MASK, MASK, dtype=torch.bool, device=device).triu_(1)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, *, zero_centered: bool
) -> torch.Tensor:
    """`rms_norm.rms_norm` by npu_rms_norm, which rounds once, after the weight.

    It has no 1 + w. The sum is float32, which it takes with a half-precision x: rounded to
    bfloat16, 1 + w would change a quarter of all outputs.
    """
    if x.numel() == 0:
        return plain_norm.rms_norm(x, weight, epsilon, zero_centered=zero_centered)
    gamma = weight
    if zero_centered:
        gamma = 1.0 + weight.float()
    elif weight.dtype not in (x.dtype, torch.float32):
        gamma = weight.to(x.dtype)
    if x.dim() == 1:  # the operator takes 2 to 8 dimensions
        return torch.ops.npu.npu_rms_norm(x[None], gamma, epsilon)[0][0]
    return torch.ops.npu.npu_rms_norm(x, gamma, epsilon)[0]


def rotate(
    x: torch.Tensor, angle: torch.Tensor, *, interleaved: bool = False, scale: float = 1.0
) -> torch.Tensor:
    """`rotary.rotate` by npu_rotary_mul: x [s, b, n, d] with cosines [s, 1, 1, r] is its SBND with
    S11D, which both rotary modes take. `scale` stays outside: cosines must lie in [-1, 1]."""
    turning = angle.shape[-1]
    moving = x if turning == x.shape[-1] else x[..., :turning]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    mode = "interleave" if interleaved else "half"
    turned = torch.ops.npu.npu_rotary_mul(moving, cos, sin, mode)
    if scale != 1.0:
        turned = turned * scale
    return turned if moving is x else torch.cat((turned, x[..., turning:]), dim=-1)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """`activation.swiglu` by npu_swiglu, which wants contiguous memory and no empty tensor."""
    if x.numel() == 0:
        return activation.swiglu(x)
    return torch.ops.npu.npu_swiglu(x.contiguous(), -1)


def geglu_tanh(x: torch.Tensor) -> torch.Tensor:
    """`activation.geglu` by npu_geglu; it activates the right half unless told otherwise."""
    return _geglu(x, 1)


def geglu_erf(x: torch.Tensor) -> torch.Tensor:
    """`activation.geglu_erf` by npu_geglu."""
    return _geglu(x, 0)


def _geglu(x: torch.Tensor, approximate: int) -> torch.Tensor:
    if x.numel() == 0:
        return x.chunk(2, dim=-1)[0] * 1.0
    return torch.ops.npu.npu_geglu(x.contiguous(), -1, approximate, True)[0]


def geglu_erf_written_out(x: torch.Tensor) -> torch.Tensor:
    """`activation.geglu_erf` without F.gelu, which computes tanh on an NPU whatever it is told."""
    gate, up = x.chunk(2, dim=-1)
    return gelu_erf_written_out(gate) * up


def gelu_erf(x: torch.Tensor) -> torch.Tensor:
    """`activation.gelu_erf` by npu_gelu, which, unlike F.gelu on an NPU, does what it is told."""
    return torch.ops.npu.npu_gelu(x, approximate="none")


def gelu_erf_written_out(x: torch.Tensor) -> torch.Tensor:
    """`activation.gelu_erf` in single operators, computed in float32."""
    wide = x.float()
    return (wide * 0.5 * (1.0 + torch.erf(wide * math.sqrt(0.5)))).to(x.dtype)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    hidden: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention.attention` by npu_fusion_attention in its layout SBH, [s, b, n * d].

    Queries are the last of the keys (sparse mode 3, right-down causal; mode 2 is the same where
    there are as many). A window of W keys, the query's own among them, is mode 4 with pre_tockens
    W - 1. Grouped keys are not repeated: fewer key heads are the operator's own way.
    """
    expect(query, key, window=window, softcap=softcap)
    sq, batch, heads, _ = query.shape
    sk = key.shape[0]
    if window is not None and window >= sk:
        window = None
    empty = None
    if hidden is None:
        options = _causal(query.device, sq, sk, window)
    else:
        options, empty = _masked(query, sk, window, hidden)
    out = torch.ops.npu.npu_fusion_attention(
        query.flatten(2), key.flatten(2), value.flatten(2), heads, "SBH",
        scale=scale, keep_prob=1.0 - dropout, **options,
    )[0]  # fmt: skip
    if empty is None:
        return out
    # empty [b or 1, 1, sq, 1] -> [sq, b or 1, 1]
    return out.masked_fill(empty[:, 0].transpose(0, 1), 0.0)


def _causal(device: torch.device, sq: int, sk: int, window: int | None) -> dict[str, Any]:
    if window is not None:
        return {"sparse_mode": 4, "pre_tockens": window - 1, "next_tockens": 0,
                "atten_mask": compressed_mask(device)}  # fmt: skip
    return {"sparse_mode": 2 if sq == sk else 3, "atten_mask": compressed_mask(device)}


def _masked(
    query: torch.Tensor, sk: int, window: int | None, hidden: torch.Tensor
) -> tuple[dict[str, Any], torch.Tensor]:
    """A whole mask (mode 1), and the rows that see nothing: they look everywhere and are zeroed."""
    sq = query.shape[0]
    shape = (1, 1, sq, sk) if hidden.dim() < 3 else (hidden.shape[0], 1, sq, sk)
    covered = hidden.expand(shape)
    seen = visible_keys(sq, sk, window, query.device)
    if seen is not None:
        covered = covered | ~seen
    empty = covered.all(-1, keepdim=True)
    return {"sparse_mode": 1, "atten_mask": covered & ~empty}, empty


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seqlens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention.packed_attention` by npu_fusion_attention in its layout TND, one call for all
    sequences; cumulative lengths have no leading 0 and lie on the host."""
    expect(query, key, cu_seqlens=cu_seqlens, window=window, softcap=softcap)
    parts = []
    for first in range(0, len(cu_seqlens) - 1, SEQUENCES):
        bounds = cu_seqlens[first : first + SEQUENCES + 1]
        rows = slice(bounds[0], bounds[-1])
        ends = [end - bounds[0] for end in bounds[1:]]
        parts.append(
            torch.ops.npu.npu_fusion_attention(
                query[rows], key[rows], value[rows], query.shape[1], "TND",
                scale=scale, keep_prob=1.0 - dropout,
                actual_seq_qlen=ends, actual_seq_kvlen=ends,
                **_causal(query.device, 1, 1, window),
            )[0].flatten(1)
        )  # fmt: skip
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    hidden: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention.attention` over a KV cache, by npu_fused_infer_attention_score in BSND.

    A single query takes no sparse mode: its keys are cropped to the window instead. Several new
    ones on top of a history are mode 3 (mode 2 would hide it), with a window mode 4, and keys that
    no query sees are cropped here as well.
    """
    name = "npu_fused_infer_attention_score"
    refuse_gradients(name, query, key, value)
    expect(query, key, window=window, softcap=softcap, dropout=dropout)
    sq, _, heads, _ = query.shape
    if hidden is not None:
        return attention(query, key, value, scale=scale, window=window, hidden=hidden)
    if window is not None and window + sq - 1 < key.shape[0]:
        key, value = key[-(window + sq - 1) :], value[-(window + sq - 1) :]
    if window is not None and window >= key.shape[0]:
        window = None
    options: dict[str, Any] = {}
    if sq > 1:
        options = {"sparse_mode": 3, "atten_mask": compressed_mask(query.device)}
        if window is not None:
            options |= {"sparse_mode": 4, "pre_tokens": window - 1, "next_tokens": 0}
    out, _ = torch.ops.npu.npu_fused_infer_attention_score(
        *(tensor.transpose(0, 1).contiguous() for tensor in (query, key, value)),
        num_heads=heads, num_key_value_heads=key.shape[2], scale=scale, input_layout="BSND",
        **options,
    )  # fmt: skip
    return out.transpose(0, 1).flatten(2)


def softmax_loss(
    logits: torch.Tensor, targets: torch.Tensor, group: Any, *, keep: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`cross_entropy.softmax_loss` of a whole vocabulary by npu_cross_entropy_loss.

    Its targets must lie in [0, v), and a negative ignore_index ignores nothing, so rows without a
    target get column 0 and no weight. It answers in the dtype of the logits: float32 here.
    """
    assert group is None, "npu_cross_entropy_loss wants the whole vocabulary"
    if len(targets) == 0:
        return logits.new_zeros(()), logits
    here = (targets >= 0) & (targets < logits.shape[1])
    column = torch.where(here, targets, 0)
    losses, chances, *_ = torch.ops.npu.npu_cross_entropy_loss(logits, column, reduction="none")
    chances = chances.exp_().mul_(here[:, None])
    chances.scatter_add_(1, column[:, None], -here.float()[:, None])
    return (losses * here).sum(), chances
