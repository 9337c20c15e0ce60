"""Owns the kernels of the virtual device: every operator of `npu` tensors that the CPU has too runs
there, the vendor's fused ones run as their reference kernels. Called once, after torch_npu was
imported."""

import importlib.machinery
import importlib.util

import torch

from rig import cann
from rig.contracts import register

# What stays the wheel's own: allocation, views, and what only looks at metadata.
_KEPT = {
    "npu": set(
        """
        _npu_format_cast _npu_storage_resize copy_memory_ empty_with_format
        empty_with_swapped_memory get_npu_format get_storage_size npu_change_data_ptr
        npu_dtype_cast npu_format_cast npu_format_cast_ unsafe_empty_with_format
        """.split()
    ),
    "aten": set(
        """
        _conj _efficientzerotensor _fused_sdp_choice _has_compatible_shallow_copy_type
        _lazy_clone _nested_view_from_buffer _pin_memory _reshape_alias _resize_output_
        alias as_strided empty.memory_format empty_strided is_pinned lift_fresh pin_memory
        record_stream reshape resize_ scaled_dot_product_attention set_ set_.source_Storage
        set_.source_Storage_storage_offset set_.source_Tensor unfold view view_as_complex
        view_as_real
        """.split()
    ),
}
_libraries = []


def install():
    """Give the device its kernels."""
    register.register(_libraries)
    aten = torch.library.Library("aten", "IMPL")
    _libraries.append(aten)
    # The wheel differentiates both by operators of its own, for which the CPU has no kernel.
    aten.impl("matmul_backward", _matmul_backward, "CPU")
    aten.impl("linear_backward", _linear_backward, "CPU")
    names = {"aten": [], "npu": []}
    for full in torch._C._dispatch_get_all_op_names():
        space, name = full.split("::")
        if space not in names or name in _KEPT[space] or name.split(".")[0] in _KEPT["npu"]:
            continue
        if _is_view(space, name):
            continue
        on_npu = torch._C._dispatch_has_kernel_for_dispatch_key(full, "PrivateUse1")
        if on_npu and torch._C._dispatch_has_computed_kernel_for_dispatch_key(full, "CPU"):
            names[space].append(name)
    fallback = _extension()
    for space, listed in names.items():
        fallback.replace(space, listed)
    aten.impl("gelu", _gelu, "PrivateUse1", allow_override=True)
    aten.impl("gelu_backward", _gelu_backward, "PrivateUse1", allow_override=True)
    return names


def _is_view(space, full):
    """Whether a result shares its input's memory: the wheel's own kernel keeps it so."""
    name, _, overload = full.partition(".")
    packet = getattr(getattr(torch.ops, space), name, None)
    found = getattr(packet, overload or "default", None)
    if found is None or name == "contiguous":
        return False
    aliases = [result.alias_info for result in found._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _extension():
    loader = importlib.machinery.ExtensionFileLoader("fallback", str(cann.home() / "fallback.so"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fallback", loader))
    loader.exec_module(module)
    return module


def _matmul_backward(grad, left, right, mask):
    a, b = left, right
    if a.dim() == 1:
        a, grad = a[None], grad.unsqueeze(-2 if b.dim() > 1 else -1)
    if b.dim() == 1:
        b, grad = b[:, None], grad.unsqueeze(-1) if left.dim() > 1 else grad.reshape(1, 1)
    of_left = (grad @ b.transpose(-1, -2)).sum_to_size(a.shape).reshape(left.shape)
    of_right = (a.transpose(-1, -2) @ grad).sum_to_size(b.shape).reshape(right.shape)
    return of_left if mask[0] else None, of_right if mask[1] else None


def _linear_backward(input, grad, weight, mask):
    rows, inputs = grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1])
    bias = rows.sum(0) if len(mask) > 2 and mask[2] else None
    return grad @ weight if mask[0] else None, rows.t() @ inputs if mask[1] else None, bias


def _gelu(x, *, approximate="none"):
    """tanh, whatever it is asked for (op-plugin, GeluOut; documented at npu_gelu)."""
    return torch.ops.aten.gelu(x.cpu(), approximate="tanh").to(x.device)


def _gelu_backward(grad, x, *, approximate="none"):
    wide = torch.ops.aten.gelu_backward(grad.cpu(), x.cpu(), approximate="tanh")
    return wide.to(x.device)
