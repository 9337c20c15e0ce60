"""Owns the beginning of a process: VIRTUAL_NPU=N makes N devices, without it nothing happens.

The environment's start-up file (run.sh writes it) imports this in every Python process, so whatever
it runs, launchers and torchrun's workers included, finds a machine with NPUs.
"""

import importlib.abc
import importlib.machinery
import os
import sys


class _AfterTorchNpu(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the device its kernels when torch_npu has been imported, by whomever."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch_npu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name)
        self._real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._real.create_module(spec)

    def exec_module(self, module):
        self._real.exec_module(module)
        from rig import device

        device.install()


def start():
    """Load CANN's stand-ins and wait for torch_npu."""
    from rig import cann

    os.environ.setdefault("TASK_QUEUE_ENABLE", "0")
    cann.load()
    sys.meta_path.insert(0, _AfterTorchNpu())


if os.environ.get("VIRTUAL_NPU", "0") != "0":
    start()
