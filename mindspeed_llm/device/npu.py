"""Owns torch_npu: the one file that imports it, when it is asked to; knows no model."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

import torch

from mindspeed_llm.errors import DeviceError


def installed() -> bool:
    """Whether torch_npu can be found; imports nothing."""
    return importlib.util.find_spec("torch_npu") is not None


@functools.cache
def why_not() -> str | None:
    """None when an NPU can be used, else the cause in one line."""
    if not installed():
        return "torch_npu is not installed"
    try:
        torch_npu = importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:  # a CANN that is missing or does not fit
        return f"torch_npu cannot be imported: {error}"
    return None if torch_npu.npu.is_available() else "torch_npu finds no NPU"


def versions() -> dict[str, str]:
    """Version of torch_npu, name of the NPU, CANN's directory; an NPU must be there."""
    torch_npu = importlib.import_module("torch_npu")
    return {
        "torch_npu": str(torch_npu.__version__),
        "npu": str(torch_npu.npu.get_device_name(0)),
        "ascend_home_path": os.environ.get("ASCEND_HOME_PATH", ""),
    }


def transfer_from_cuda() -> None:
    """Let code that says `cuda` run on the NPU, through the vendor's own switch.

    Raises:
        DeviceError: torch_npu or its switch cannot be imported; the cause is kept.
    """
    try:
        importlib.import_module("torch_npu.contrib.transfer_to_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"DEVICE=npu: torch_npu.contrib.transfer_to_npu cannot be imported ({error}); "
            "install the torch_npu of this torch version and source CANN's set_env.sh, "
            "or set DEVICE=cpu"
        ) from error
    # torch_npu answers None, and torch.distributed's broadcast and megatron compare its first part
    # with CUDA's generations. (0, 0) is older than each of them.
    torch.cuda.get_device_capability = _no_capability


def _no_capability(_device: Any = None) -> tuple[int, int]:
    return (0, 0)
