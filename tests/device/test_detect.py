"""Tests of mindspeed_llm.device.detect."""

from __future__ import annotations

import pytest
import torch

from mindspeed_llm.device import detect as module
from mindspeed_llm.device.detect import Device, detect
from mindspeed_llm.errors import DeviceError


@pytest.fixture
def works(monkeypatch):
    """`works("cuda")`: a machine on which only these devices work."""
    monkeypatch.delenv("DEVICE", raising=False)

    def only(*kinds):
        monkeypatch.setattr(module.npu, "why_not", lambda: None if "npu" in kinds else "no npu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)

    return only


@pytest.mark.parametrize(
    ("kinds", "best"),
    [((), "cpu"), (("cuda",), "cuda"), (("npu",), "npu"), (("npu", "cuda"), "npu")],
)
def test_the_best_that_works(works, kinds, best):
    works(*kinds)
    assert detect().kind == best
    assert detect().reason


def test_argument_before_environment_before_best(works, monkeypatch):
    works("npu", "cuda")
    monkeypatch.setenv("DEVICE", "cuda")
    assert detect().kind == "cuda"
    assert detect("cpu") == Device("cpu", "asked for by --device")


def test_unknown_name_lists_the_known(works):
    works()
    with pytest.raises(DeviceError, match="--device is 'tpu'; expected one of npu, cuda, cpu"):
        detect("tpu")


@pytest.mark.parametrize(("kind", "cause"), [("npu", "no npu"), ("cuda", "no CUDA device")])
def test_no_silent_fall_back(works, monkeypatch, kind, cause):
    works()
    monkeypatch.setenv("DEVICE", kind)
    with pytest.raises(DeviceError, match=f"DEVICE is {kind}, but .*{cause}"):
        detect()


def test_backends_and_devices():
    assert [Device(kind, "").backend for kind in ("npu", "cuda", "cpu")] == ["hccl", "nccl", "gloo"]
    assert Device("cpu", "").torch_device(3) == torch.device("cpu")
    assert Device("cuda", "").torch_device(3) == torch.device("cuda", 3)


def test_an_npus_groups_carry_the_cpus_tensors_too():
    assert Device("npu", "").process_groups == "cpu:gloo,npu:hccl"
    assert Device("cuda", "").process_groups == "nccl"
    assert Device("cpu", "").process_groups == "gloo"
