"""Tests of mindspeed_llm.patches.npu, and of the type names that a CPU has."""

import pytest
import torch

from mindspeed_llm.patches import device, npu
from mindspeed_llm.patches.registry import REGISTER


def _type_name(tensor, names=("torch.cuda.FloatTensor", "torch.cuda.HalfTensor"), *, strict=True):
    if tensor.type() in ["torch.cuda.FloatTensor", "torch.cuda.HalfTensor"]:
        return "known"
    return [name for name in ["torch.cuda.x"] if strict]


@pytest.mark.parametrize("adapter", [device.cpu_type_names, npu.type_names])
def test_type_names_are_constants_of_one_function(adapter):
    changed = adapter(_type_name)
    assert (changed(torch.ones(1)) == "known") == (adapter is device.cpu_type_names)
    assert changed(torch.ones(1, dtype=torch.int8)) == ["torch.cuda.x"]
    assert (changed.__name__, changed.__defaults__) == ("_type_name", _type_name.__defaults__)
    assert changed(torch.ones(1, dtype=torch.int8), strict=False) == []
    assert _type_name(torch.ones(1)) == ["torch.cuda.x"]


def test_nothing_of_it_is_for_another_device():
    """An adapter's module is imported when one of its entries is applied, and only then."""
    own = [patch for patch in REGISTER if patch.adapter.startswith(f"{npu.__name__}:")]
    assert len(own) == 5 and {patch.devices for patch in own} == {("npu",)}
    others = [patch for patch in REGISTER if patch.devices == ("npu",) and patch not in own]
    assert {patch.adapter.split(":")[1] for patch in others} <= {"rotary"}
