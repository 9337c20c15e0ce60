"""Owns the table of kernels: operation -> device -> candidates in order, with their conditions.

Sources of the operators' conditions: op-plugin's documents and kernels, quoted beside the calls in
`npu`. It knows no layer.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_llm.kernels import dispatch
from mindspeed_llm.kernels.dispatch import Candidate, Choice, Need
from mindspeed_llm.kernels.linear import mkl_suffices

_HALF = (torch.float16, torch.bfloat16)


def operator(name: str, *arguments: str) -> Callable[[], str | None]:
    """Probe: torch_npu's operator `name` is registered and has the named arguments."""

    def probe() -> str | None:
        try:
            schema = getattr(torch.ops.npu, name).default._schema
        except (AttributeError, RuntimeError):
            return f"this torch_npu has no operator {name}"
        known = {argument.name for argument in schema.arguments}
        missing = [argument for argument in arguments if argument not in known]
        return f"{name} of this torch_npu has no argument {missing[0]}" if missing else None

    return probe


def package(name: str, place: str | None = None, *arguments: str) -> Callable[[], str | None]:
    """Probe: package `name` is there; with `place`, `module:function` of it can be imported and has
    the named arguments. A package that is not there is not looked into."""

    @functools.cache
    def probe() -> str | None:
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
        return None if place is None else _lacks(name, place, arguments)

    return probe


def _lacks(name: str, place: str, arguments: tuple[str, ...]) -> str | None:
    module, _, function = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch, no triton
        return f"{name} cannot be imported: {str(error).splitlines()[0]}"
    if found is None:
        return f"this {name} has no {function}"
    known = inspect.signature(getattr(found, "forward", found)).parameters
    missing = [argument for argument in arguments if argument not in known]
    return f"{function} of this {name} has no argument {missing[0]}" if missing else None


def _uncapped(need: Need) -> str | None:
    return None if need.softcap is None else "it has no soft cap"


def _npu_attention(need: Need) -> str | None:
    if need.head_dim > 768:
        return f"heads of {need.head_dim}; it takes 768 at most"
    return _uncapped(need)


def _npu_decode(need: Need) -> str | None:
    if need.dtype not in _HALF:
        return "it computes in fp16 and bf16 only"
    if need.head_dim % 16 or need.head_dim > 512:
        return f"heads of {need.head_dim}; it takes multiples of 16 up to 512"
    return _uncapped(need)


def _npu_rotary(need: Need) -> str | None:
    even = need.head_dim % 2 == 0 and need.head_dim < 896
    return None if even else f"heads of {need.head_dim}; it takes even ones below 896"


def _flash(need: Need) -> str | None:
    if need.dtype not in _HALF:
        return "it computes in fp16 and bf16 only"
    return None if need.head_dim <= 256 else f"heads of {need.head_dim}; it takes 256 at most"


def _onednn(need: Need) -> str | None:
    if need.dtype not in (torch.float32, torch.bfloat16):
        return "it computes in fp32 and bf16 only"
    return "it has no dropout" if need.dropout else None


def _flash_npu(need: Need) -> str | None:
    return "it has no dropout" if need.dropout else _flash(need)


def _flex(need: Need) -> str | None:
    return "it has no dropout" if need.dropout else None


def _float32(need: Need) -> str | None:
    return None if need.dtype is torch.float32 else "torch takes what the processor has by itself"


def _whole(need: Need) -> str | None:
    return "the vocabulary is split over ranks" if need.split else None


def _split(need: Need) -> str | None:
    return None if need.split else "the vocabulary is whole"


def _corrected(need: Need) -> str | None:
    return None if need.bias_correction else "it always corrects the bias of the means"


_SDPA = Candidate(
    "scaled_dot_product_attention", "attention:attention",
    "torch's own fused kernels", fits=_uncapped,
)  # fmt: skip
# An NPU has a fused kernel of its own for what torch's does: there it is a fall-back.
_SDPA_NPU = dataclasses.replace(
    _SDPA, why="torch's own, which repeats keys and may write scores out", fused=False
)
_EXACT = Candidate(
    "soft-capped blocks", "attention:attention",
    "exact, a block of queries at a time, scores computed again for the gradient", fused=False,
)  # fmt: skip
_SDPA_PACKED = Candidate(
    "scaled_dot_product_attention a sequence", "attention:packed_attention",
    "torch's own fused kernels, sequence by sequence", fits=_uncapped,
)  # fmt: skip
_EXACT_PACKED = Candidate(
    "soft-capped blocks a sequence", "attention:packed_attention", _EXACT.why, fused=False
)
_SDPA_PACKED_NPU = dataclasses.replace(
    _SDPA_PACKED, why=_SDPA_NPU.why + ", sequence by sequence", fused=False
)
_ADAMW = Candidate("_fused_adamw_", "optimizer:fused_update", "ATen's fused step", fits=_corrected)
_LOSS = Candidate("plain torch", "cross_entropy:softmax_loss",
                  "exact over a split vocabulary, a chunk of logits at a time")  # fmt: skip
_ONEDNN = ("a block of queries at a time, with AVX-512, which MKL keeps for Intel's own",
           mkl_suffices, _onednn)  # fmt: skip
_FUSION = "one fused call, forward and backward"
_ASKED = ("dropout_p", "softmax_scale", "causal", "window_size", "softcap")  # of flash-attn
_FLASH_NPU = ("flash_attn_npu has the soft cap that CANN's own operators lack",
              package("flash_attn_npu", "flash_attn_npu:flash_attn_func", *_ASKED),
              _flash_npu)  # fmt: skip
_FLASH = ("flash-attn, soft cap and window inside",
          package("flash_attn", "flash_attn:flash_attn_func", *_ASKED), _flash)  # fmt: skip
_FLEX = "compiled FlexAttention, soft cap and window inside"
_SAME = "the same on every device"
_ROWS_OF_NPU = ("atten_mask", "scale", "keep_prob", "pre_tockens", "next_tockens", "sparse_mode")
_NPU_ATTENTION = operator("npu_fusion_attention", *_ROWS_OF_NPU)
_LIGER_NORM = package("liger_kernel", "liger_kernel.ops.rms_norm:LigerRMSNormFunction",
                      "eps", "offset", "casting_mode", "in_place")  # fmt: skip
_LIGER_SWIGLU = package("liger_kernel", "liger_kernel.ops.swiglu:LigerSiLUMulFunction")
_LIGER_GEGLU = package("liger_kernel", "liger_kernel.ops.geglu:LigerGELUMulFunction")

# The last candidate of "plain" does everything everywhere and stands behind each device's own.
_ROWS: dict[str, dict[str, tuple[Candidate, ...]]] = {
    "rms_norm": {
        "npu": (Candidate("npu_rms_norm", "npu:rms_norm", _FUSION + "; 1 + w as float32 gamma",
                          operator("npu_rms_norm")),),
        "cuda": (Candidate("liger rms_norm", "liger:rms_norm", "Liger's Triton kernel",
                           _LIGER_NORM),),
        "plain": (Candidate("plain torch", "rms_norm:rms_norm", _SAME, fused=False),),
    },
    "rotary": {
        "npu": (Candidate("npu_rotary_mul", "npu:rotate", _FUSION,
                          operator("npu_rotary_mul", "rotary_mode"), _npu_rotary),),
        "plain": (Candidate("plain torch", "rotary:rotate", _SAME, fused=False),),
    },
    "swiglu": {
        "npu": (Candidate("npu_swiglu", "npu:swiglu", _FUSION, operator("npu_swiglu")),),
        "cuda": (Candidate("liger swiglu", "liger:swiglu", "Liger's Triton kernel",
                           _LIGER_SWIGLU),),
        "plain": (Candidate("plain torch", "activation:swiglu", _SAME, fused=False),),
    },
    "geglu_tanh": {
        "npu": (Candidate("npu_geglu", "npu:geglu_tanh", _FUSION + ", left half activated",
                          operator("npu_geglu", "activate_left")),),
        "cuda": (Candidate("liger geglu", "liger:geglu_tanh", "Liger's Triton kernel",
                           _LIGER_GEGLU),),
        "plain": (Candidate("plain torch", "activation:geglu", _SAME, fused=False),),
    },
    "geglu_erf": {
        "npu": (
            Candidate("npu_geglu", "npu:geglu_erf", _FUSION + ", left half activated",
                      operator("npu_geglu", "activate_left")),
            # F.gelu takes tanh on an NPU whatever it is told (op-plugin, GeluOut).
            Candidate("erf written out", "npu:geglu_erf_written_out",
                      "F.gelu computes tanh on an NPU", fused=False),
        ),
        "plain": (Candidate("plain torch", "activation:geglu_erf", _SAME, fused=False),),
    },
    "gelu_erf": {
        "npu": (
            Candidate("npu_gelu", "npu:gelu_erf", _FUSION, operator("npu_gelu", "approximate")),
            Candidate("erf written out", "npu:gelu_erf_written_out",
                      "F.gelu computes tanh on an NPU", fused=False),
        ),
        "plain": (Candidate("torch's gelu", "activation:gelu_erf", "one kernel of torch"),),
    },
    "linear": {
        "cpu": (Candidate("oneDNN", "linear:onednn", "AVX-512, which MKL keeps for Intel's own",
                          mkl_suffices, _float32),),
        "plain": (Candidate("torch's linear", "linear:plain", "torch's own products",
                            fused=False),),
    },
    "attention": {
        "npu": (
            Candidate("npu_fusion_attention", "npu:attention", _FUSION + ", keys not repeated",
                      _NPU_ATTENTION, _npu_attention),
            Candidate("flash_attn_npu", "flash:attention", *_FLASH_NPU),
            _SDPA_NPU,
            _EXACT,
        ),
        "cuda": (
            Candidate("flash_attn", "flash:attention", *_FLASH),
            _SDPA,
            Candidate("flex_attention", "flex:attention", _FLEX, fits=_flex),
        ),
        "cpu": (Candidate("oneDNN", "onednn:attention", *_ONEDNN),),
        "plain": (_SDPA, _EXACT),
    },
    "packed_attention": {
        "npu": (
            Candidate("npu_fusion_attention TND", "npu:packed_attention",
                      "one fused call for all sequences, keys not repeated",
                      operator("npu_fusion_attention", *_ROWS_OF_NPU, "actual_seq_qlen",
                               "actual_seq_kvlen"), _npu_attention),
            Candidate("flash_attn_npu", "flash:packed_attention", *_FLASH_NPU),
            _SDPA_PACKED_NPU,
            _EXACT_PACKED,
        ),
        "cuda": (
            Candidate("flash_attn", "flash:packed_attention", *_FLASH),
            Candidate("flex_attention", "flex:packed_attention",
                      _FLEX + ", one call for all sequences", fits=_flex),
        ),
        "cpu": (Candidate("oneDNN", "onednn:packed_attention", *_ONEDNN),),
        "plain": (_SDPA_PACKED, _EXACT_PACKED),
    },
    "decode_attention": {
        "npu": (
            Candidate("npu_fused_infer_attention_score", "npu:decode_attention",
                      "one fused call, keys not repeated",
                      operator("npu_fused_infer_attention_score", "num_key_value_heads",
                               "atten_mask", "pre_tokens", "next_tokens", "sparse_mode"),
                      _npu_decode),
            Candidate("npu_fusion_attention", "npu:attention", "fused, in float32 too",
                      _NPU_ATTENTION, _npu_attention),
            _SDPA_NPU,
            _EXACT,
        ),
        "cpu": (Candidate("oneDNN", "onednn:attention", *_ONEDNN),),
        "plain": (_SDPA, _EXACT),
    },
    "cross_entropy": {
        "npu": (Candidate("npu_cross_entropy_loss", "npu:softmax_loss",
                          "one fused call a chunk of logits",
                          operator("npu_cross_entropy_loss", "reduction"), _whole),
                dataclasses.replace(_LOSS, fits=_split),
                dataclasses.replace(_LOSS, fused=False)),
        "plain": (_LOSS,),
    },
    "adamw": {
        "npu": (_ADAMW,),
        "cuda": (_ADAMW,),
        "cpu": (_ADAMW,),
        "plain": (Candidate("torch._foreach", "optimizer:foreach_update", _SAME, fused=False),),
    },
    "grad_norm": {
        "plain": (Candidate("torch._foreach_norm", "grad_norm:l2_norm",
                            "no wait for the device at each gradient"),),
    },
}  # fmt: skip

# What is shown: a name, the operation, what is needed of it besides the dtype.
SHOWN: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("RMSNorm", "rms_norm", {}),
    ("RMSNorm 1 + w", "rms_norm", {"zero_centered": True}),
    ("rotary embedding", "rotary", {}),
    ("SwiGLU", "swiglu", {}),
    ("GeGLU (tanh)", "geglu_tanh", {}),
    ("GeGLU (erf)", "geglu_erf", {}),
    ("GELU (erf)", "gelu_erf", {}),
    ("linear layer", "linear", {}),
    ("attention", "attention", {}),
    ("attention, sliding window", "attention", {"window": 4096}),
    ("attention, soft cap", "attention", {"softcap": 50.0}),
    ("packed attention", "packed_attention", {}),
    ("packed attention, soft cap", "packed_attention", {"softcap": 50.0}),
    ("decode attention", "decode_attention", {}),
    ("decode attention, soft cap", "decode_attention", {"softcap": 50.0}),
    ("linear + cross entropy", "cross_entropy", {}),
    ("AdamW", "adamw", {}),
    ("gradient norm", "grad_norm", {}),
)


def candidates(op: str, device: str) -> tuple[Candidate, ...]:
    """The candidates of `op` on `device`, best first; the last does everything."""
    row = _ROWS[op]
    own = row.get(device, ())
    if own and not own[-1].fused:
        return own  # the plain one would compute something else there
    return own + tuple(one for one in row["plain"] if one not in own)


def excludable() -> tuple[str, ...]:
    """Names that dispatch.WITHOUT may have: of kernels in whose place another one can stand."""
    names: set[str] = set()
    for op, row in _ROWS.items():
        for device in row:
            *ones, last = candidates(op, device)
            names |= {one.kernel for one in ones if one.place != last.place}
    return tuple(sorted(names))


def _chosen(op: str, device: str, need: dict[str, Any]) -> Choice:
    dispatch.check_without(excludable())
    return dispatch.choose(op, device, Need(**need), candidates(op, device))


def kernel(op: str, device: str, **need: Any) -> Callable[..., Any]:
    """The kernel of `op`; `need` is what `Need` says. A fall-back is a warning or an error.

    Raises:
        KernelError: see `dispatch.choose`.
    """
    return _chosen(op, device, need).call


def fused(op: str, device: str, **need: Any) -> Callable[..., Any] | None:
    """`kernel`, or None where none is fused: then code that does the same may stay as it is.

    Raises:
        KernelError: see `dispatch.choose`.
    """
    choice = _chosen(op, device, need)
    return choice.call if choice.candidate.fused else None


@functools.cache
def operations() -> tuple[str, ...]:
    """Every operation of the table."""
    return tuple(_ROWS)


def overview(device: str, dtype: torch.dtype) -> list[tuple[str, Choice]]:
    """(name, choice) of all that is shown, for `device` and `dtype`; no fall-back is refused.

    Raises:
        KernelError: see `dispatch.check_without`.
    """
    dispatch.check_without(excludable())
    return [
        (name, dispatch.look(op, device, Need(dtype=dtype, **need), candidates(op, device)))
        for name, op, need in SHOWN
    ]
