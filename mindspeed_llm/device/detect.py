"""Owns the choice between npu, cuda and cpu; knows neither process groups nor patches."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

import torch

from mindspeed_llm.device import npu
from mindspeed_llm.errors import DeviceError

Kind = Literal["npu", "cuda", "cpu"]
_BACKENDS: dict[str, str] = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}


@dataclasses.dataclass(frozen=True)
class Device:
    """The device this process computes on, and why it was chosen."""

    kind: Kind
    reason: str

    @property
    def backend(self) -> str:
        """Collective backend of torch.distributed: hccl, nccl or gloo."""
        return _BACKENDS[self.kind]

    @property
    def process_groups(self) -> str:
        """What torch.distributed's groups are made of: on an NPU gloo besides, since HCCL carries
        no tensors of the CPU (objects, metadata of checkpoints)."""
        return "cpu:gloo,npu:hccl" if self.kind == "npu" else self.backend

    def torch_device(self, local_rank: int = 0) -> torch.device:
        """Device of tensors for the process with this rank on its machine."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device(self.kind, local_rank)


def detect(requested: str | None = None) -> Device:
    """Device by `requested`, else by the environment's DEVICE, else the best that works.

    Raises:
        DeviceError: the name is unknown, or the device that was asked for does not work here.
    """
    if requested:
        return _demand(requested, "--device")
    if os.environ.get("DEVICE"):
        return _demand(os.environ["DEVICE"], "DEVICE")
    for kind in ("npu", "cuda"):
        if _why_not(kind) is None:
            return Device(kind, "the best that works here")  # type: ignore[arg-type]
    return Device("cpu", f"{_why_not('npu')}; {_why_not('cuda')}")


def _demand(name: str, where: str) -> Device:
    kind = name.strip().lower()
    if kind not in _BACKENDS:
        raise DeviceError(f"{where} is {name!r}; expected one of {', '.join(_BACKENDS)}")
    cause = _why_not(kind)
    if cause is not None:
        raise DeviceError(f"{where} is {kind}, but {cause}; mend that, or use cpu")
    return Device(kind, f"asked for by {where}")  # type: ignore[arg-type]


def _why_not(kind: str) -> str | None:
    if kind == "npu":
        return npu.why_not()
    if kind == "cuda":
        return None if torch.cuda.is_available() else "torch finds no CUDA device"
    return None
