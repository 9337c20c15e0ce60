"""Owns what an NPU alone needs: the vendor's switch from torch.cuda, and the names of its types in
megatron-core. No other device loads this file."""

from __future__ import annotations

from types import FunctionType

from mindspeed_llm.device.npu import transfer_from_cuda
from mindspeed_llm.patches.device import with_type_names

__all__ = ["transfer_from_cuda", "type_names"]


def type_names(original: FunctionType) -> FunctionType:
    """`original` with 'torch.cuda.FloatTensor' and its like read as 'torch.npu.FloatTensor'."""
    return with_type_names(original, "torch.npu.")
