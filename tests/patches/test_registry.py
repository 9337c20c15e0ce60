"""Tests of mindspeed_llm.patches.registry."""

from __future__ import annotations

import importlib

from mindspeed_llm.patches.registry import REGISTER


def test_every_adapter_exists():
    for patch in REGISTER:
        module, name = patch.adapter.split(":")
        assert callable(getattr(importlib.import_module(module), name)), patch.adapter


def test_few_symbols_are_changed():
    assert len({patch.target for patch in REGISTER}) <= 25


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
