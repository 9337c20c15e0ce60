"""Tests of mindspeed_llm.device.runtime."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
import torch.distributed as dist

from mindspeed_llm.device import runtime
from mindspeed_llm.device.detect import Device
from mindspeed_llm.errors import DeviceError

CPU = Device("cpu", "test")


@pytest.fixture
def bare(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    runtime.shutdown_distributed()


def test_a_bare_process_is_a_world_of_one(bare):
    runtime.init_distributed(CPU)
    runtime.init_distributed(CPU)
    value = torch.ones(2)
    dist.all_reduce(value)
    assert (dist.get_world_size(), dist.get_rank(), value.tolist()) == (1, 0, [1.0, 1.0])
    runtime.shutdown_distributed()
    runtime.shutdown_distributed()
    assert not dist.is_initialized()


def test_half_an_environment_is_an_error(bare):
    bare.setenv("RANK", "0")
    with pytest.raises(DeviceError, match="RANK is set but WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        runtime.init_distributed(CPU)
    assert not dist.is_initialized()


def test_local_rank(bare):
    assert runtime.local_rank() == 0
    bare.setenv("LOCAL_RANK", "3")
    assert runtime.local_rank() == 3


def test_seeds_repeat():
    def draw():
        runtime.seed_everything(5)
        return random.random(), numpy.random.rand(), torch.rand(3).tolist()

    assert draw() == draw()


def _sum_of_ranks(start):
    import torch
    import torch.distributed as dist

    value = torch.tensor([start + dist.get_rank()])
    dist.all_reduce(value)
    return {"rank": dist.get_rank(), "sum": value.item()}


def test_processes_with_an_environment_form_one_group(run_ranks):
    assert run_ranks(2, _sum_of_ranks, 10) == [{"rank": 0, "sum": 21}, {"rank": 1, "sum": 21}]
