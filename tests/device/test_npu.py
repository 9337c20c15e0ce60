"""Tests of mindspeed_llm.device.npu, with a small package in torch_npu's place."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from mindspeed_llm.device import npu
from mindspeed_llm.errors import DeviceError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(init, transfer)` puts a torch_npu of this source on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(init, transfer=""):
        folder = tmp_path / "torch_npu"
        (folder / "contrib").mkdir(parents=True)
        (folder / "__init__.py").write_text(init)
        (folder / "contrib" / "__init__.py").write_text("")
        (folder / "contrib" / "transfer_to_npu.py").write_text(transfer)
        importlib.invalidate_caches()

    npu.why_not.cache_clear()
    yield write
    npu.why_not.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("torch_npu"):
            del sys.modules[name]


def _init(available):
    return f"import types\nnpu = types.SimpleNamespace(is_available=lambda: {available})\n"


def test_absent(monkeypatch):
    monkeypatch.setattr(npu.importlib.util, "find_spec", lambda name: None)
    npu.why_not.cache_clear()
    assert npu.why_not() == "torch_npu is not installed"
    npu.why_not.cache_clear()


def test_usable(package):
    package(_init(True))
    assert npu.installed() and "torch_npu" not in sys.modules
    assert npu.why_not() is None


def test_without_a_card(package):
    package(_init(False))
    assert npu.why_not() == "torch_npu finds no NPU"


def test_broken_installation_keeps_its_cause(package):
    package("raise ImportError('libhccl.so: cannot open shared object file')")
    assert "libhccl.so" in npu.why_not()


def test_switch_is_the_vendors(package):
    package(_init(True), "import torch_npu\ntorch_npu.switched = True\n")
    npu.transfer_from_cuda()
    assert isinstance(sys.modules["torch_npu"], types.ModuleType)
    assert sys.modules["torch_npu"].switched


def test_switch_that_fails_names_cause_and_mend(package):
    package(_init(True), "raise RuntimeError('CANN 8 is too old')")
    with pytest.raises(DeviceError, match="CANN 8 is too old.*set DEVICE=cpu") as caught:
        npu.transfer_from_cuda()
    assert isinstance(caught.value.__cause__, RuntimeError)
