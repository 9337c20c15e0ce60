"""A peak is told only of a device that is known by its full name."""

import pytest
import torch

from mindspeed_llm.device.measure import most_memory, peak_of, peak_tflops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", None),
        ("NVIDIA H100 something new", None),
        ("NVIDIA A4000", None),
        ("Ascend910B1", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert peak_of(name) == peak


def test_a_cpu_has_memory_and_no_known_peak():
    cpu = torch.device("cpu")
    before = most_memory(cpu)
    held = torch.ones(30_000_000)
    assert most_memory(cpu) >= before > 0 and most_memory(cpu) >= 4 * held.numel()
    assert peak_tflops(cpu, torch.bfloat16) is None
