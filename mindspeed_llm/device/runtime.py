"""Owns the process group's beginning and end, and seeds; knows no parallel layout and no model."""

from __future__ import annotations

import datetime
import os
import random

import numpy
import torch
import torch.distributed as dist

from mindspeed_llm.device.detect import Device
from mindspeed_llm.errors import DeviceError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def local_rank() -> int:
    """Rank on this machine, as torchrun gives it; 0 in a single process."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def init_distributed(device: Device, timeout_minutes: float = 30.0) -> None:
    """Join torchrun's processes, or be a world of one; does nothing when a group exists.

    A process that torchrun did not start needs no port, host name or environment variable: it
    talks to itself through a store in memory.

    Raises:
        DeviceError: only a part of torchrun's environment variables is set.
    """
    if dist.is_initialized():
        return
    present = [name for name in _TORCHRUN if name in os.environ]
    if present and len(present) < len(_TORCHRUN):
        missing = ", ".join(name for name in _TORCHRUN if name not in present)
        raise DeviceError(
            f"{', '.join(present)} is set but {missing} is not; start the command with torchrun, "
            "or unset them for a single process"
        )
    if device.kind != "cpu":
        getattr(torch, device.kind).set_device(device.torch_device(local_rank()))
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if present:
        dist.init_process_group(device.process_groups, timeout=timeout)
    else:
        store = dist.HashStore()
        dist.init_process_group(
            device.process_groups, store=store, rank=0, world_size=1, timeout=timeout
        )


def shutdown_distributed() -> None:
    """Leave the process group if there is one; safe to call twice."""
    if dist.is_initialized():
        dist.destroy_process_group()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (torch's on every device)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
