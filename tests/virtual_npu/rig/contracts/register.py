"""Owns which kernel stands for which operator of the wheel, and the record of calls."""

import torch

from rig import journal
from rig.contracts import attention, elementwise
from rig.contracts.rules import Arguments, ContractError

KERNELS = {
    "npu::npu_rms_norm": elementwise.rms_norm,
    "npu::npu_rms_norm_backward": elementwise.rms_norm_backward,
    "npu::npu_rotary_mul": elementwise.rotary_mul,
    "npu::npu_rotary_mul_backward": elementwise.rotary_mul_backward,
    "npu::npu_swiglu": elementwise.swiglu,
    "npu::npu_swiglu_backward": elementwise.swiglu_backward,
    "npu::npu_geglu": elementwise.geglu,
    "npu::npu_geglu_grad": elementwise.geglu_grad,
    "npu::npu_gelu": elementwise.gelu,
    "npu::npu_gelu_backward": elementwise.gelu_backward,
    "npu::npu_cross_entropy_loss": elementwise.cross_entropy_loss,
    "npu::npu_cross_entropy_loss_backward": elementwise.cross_entropy_loss_backward,
    "npu::npu_fusion_attention": attention.fusion_attention,
    "npu::npu_fusion_attention_grad": attention.fusion_attention_grad,
    "npu::npu_fusion_attention_v3": attention.fusion_attention_v3,
    "npu::npu_fusion_attention_grad_v3": attention.fusion_attention_grad_v3,
    "npu::npu_fused_infer_attention_score": attention.fused_infer_attention_score,
}
# YAML has no formula for these: autograd would pass through and drop the gradient.
WITHOUT_DERIVATIVE = (
    "npu_fused_infer_attention_score",
    "npu_gemma_rms_norm",
    "npu_gelu_mul",
    "npu_clipped_swiglu",
)


def register(keep):
    """Register the kernels for CPU tensors, which is what the virtual device hands down."""
    library = torch.library.Library("npu", "IMPL")
    keep.append(library)
    for name, kernel in KERNELS.items():
        operator = name.split("::")[1]
        schema = getattr(torch.ops.npu, operator).default._schema
        library.impl(operator, _recorded(operator, schema, kernel), "CPU")
    for operator in WITHOUT_DERIVATIVE:
        overload = getattr(torch.ops.npu, operator).default
        library.impl(operator, _without_derivative(operator, overload), "AutogradPrivateUse1")


def _recorded(operator, schema, kernel):
    def run(*positional, **named):
        arguments = Arguments(schema, positional, named)
        journal.write(operator, arguments)
        return kernel(arguments)

    return run


def _without_derivative(operator, overload):
    def run(*positional, **named):
        given = [value for value in (*positional, *named.values()) if torch.is_tensor(value)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            raise ContractError(f"{operator} has no derivative: gradients would vanish (YAML)")
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*positional, **named)

    return run
