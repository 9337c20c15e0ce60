"""Tests of mindspeed_llm.patches.registry."""

from __future__ import annotations

import importlib

import pytest

from mindspeed_llm.patches.record import DEVICES
from mindspeed_llm.patches.registry import REGISTER
from mindspeed_llm.patches.versions import matches


def test_every_adapter_exists():
    for patch in REGISTER:
        module, name = patch.adapter.split(":")
        assert callable(getattr(importlib.import_module(module), name)), patch.adapter


@pytest.mark.parametrize(
    ("version", "most"), [("0.19.2", 29), ("0.16.1", 29), ("0.15.3", 30), ("0.14.0", 28),
                          ("0.13.1", 28), ("0.12.3", 29)])  # fmt: skip
def test_few_symbols_of_megatron_core_are_changed(version, most):
    """In one process; the oldest version needs more mends."""
    for device in DEVICES:
        ours = [p for p in REGISTER if matches(version, p.mcore) and device in p.devices]
        core = {p.target for p in ours if p.target.startswith(("megatron.core", "torch"))}
        assert len(core) <= most, device


def test_only_megatron_and_three_methods_of_torch():
    others = {p.target for p in REGISTER if not p.target.startswith("megatron.")}
    assert others == {
        "torch.*:cuda", "torch:Tensor.cuda", "torch:nn.Module.cuda", "torch:Tensor.pin_memory"
    }  # fmt: skip
    for patch in REGISTER:
        if patch.target in others:
            assert patch.devices == (("npu",) if "*" in patch.target else ("cpu",))


def test_cuda_machines_get_no_facade():
    kinds = {patch.kind for patch in REGISTER if "cuda" in patch.devices}
    assert kinds == {"wrap"}
