"""Owns what is known and asked of a device while it works: its peak, and the memory held. Knows no
model.
"""

from __future__ import annotations

import resource
import sys

import torch

# Dense bf16 TFLOP/s with fp32 accumulation, from NVIDIA's data sheets (half of "with sparsity").
# The first entry that is part of the device's name counts; what is not here has no known peak.
BF16_PEAKS = (
    ("H200 NVL", 835.5),
    ("H200", 989.5),
    ("H100 PCIe", 756.5),
    ("H100 NVL", 835.5),
    ("H100 80GB HBM3", 989.5),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("L40S", 362.0),
    ("L4", 121.0),
)


def peak_tflops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak of matrix products in `dtype`, TFLOP/s; None where it is not known."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return peak_of(name)


def peak_of(name: str) -> float | None:
    """bf16 peak of a device by the name that its driver gives, TFLOP/s."""
    words = name.split()
    for known, peak in BF16_PEAKS:
        first, *rest = known.split()
        starts = [i for i, word in enumerate(words) if word.split("-")[0] == first]
        if any(words[i + 1 : i + 1 + len(rest)] == rest for i in starts):
            return peak
    return None


def most_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held so far, of the device or, on a CPU, of RAM."""
    if device.type != "cpu":
        return getattr(torch, device.type).max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
