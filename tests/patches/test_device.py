"""Tests of mindspeed_llm.patches.device."""

from __future__ import annotations

import pytest
import torch

from mindspeed_llm.patches import device

FACADE = device.torch_facade(torch)


@pytest.mark.parametrize("where", ["cuda", "cuda:1", torch.device("cuda"), 0])
def test_factories_take_cuda_for_the_cpu(where):
    for name in ("zeros", "empty", "ones", "tensor", "arange", "full"):
        arguments = {"tensor": ([1.0],), "full": ((2,), 1.0)}.get(name, (2,))
        assert getattr(FACADE, name)(*arguments, device=where).device == device.CPU
    assert FACADE.zeros_like(torch.ones(1), device=where).device == device.CPU


def test_nothing_is_pinned_and_other_devices_stay():
    assert not FACADE.tensor([1], pin_memory=True).is_pinned()
    assert FACADE.zeros(2, device="meta").device.type == "meta"
    assert FACADE.zeros(2, device=None, dtype=torch.int8).dtype == torch.int8


def test_the_rest_is_torch_itself():
    assert FACADE.Tensor is torch.Tensor and FACADE.nn is torch.nn
    assert FACADE.distributed is torch.distributed and FACADE.float32 is torch.float32
    assert FACADE.cuda.amp is torch.cuda.amp
    assert set(dir(torch)) <= set(dir(FACADE))
    with pytest.raises(AttributeError):
        _ = FACADE.no_such_name


def test_torch_is_not_changed():
    before = dict(vars(torch)), dict(vars(torch.cuda))
    device.torch_facade(torch)
    assert (dict(vars(torch)), dict(vars(torch.cuda))) == before
    assert FACADE.zeros is not torch.zeros and FACADE.cuda is not torch.cuda


def test_device_questions():
    cuda = FACADE.cuda
    assert cuda.current_device() == device.CPU
    assert cuda.device_count() >= 1
    assert cuda.get_device_properties(0).total_memory > 0
    assert cuda.memory_allocated() == cuda.memory_stats()["any"] == 0
    assert cuda.set_device(0) is None and cuda.synchronize() is None
    assert not cuda.is_current_stream_capturing()
    with cuda.stream(cuda.Stream()), cuda.nvtx.range("name"):
        assert cuda.current_stream().query()


def test_streams_and_events():
    stream, start = device.Stream(), device.Event(enable_timing=True)
    start.record()
    end = stream.record_event()
    stream.wait_event(end)
    stream.wait_stream(stream)
    stream.synchronize()
    end.wait()
    end.synchronize()
    assert end.query() and start.elapsed_time(end) >= 0


def test_random_state_is_restored_at_once():
    FACADE.cuda.manual_seed(4)
    state = FACADE.cuda.get_rng_state()
    first = torch.rand(3)
    FACADE.cuda.random.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_autocast_for_cuda_is_the_cpus():
    with FACADE.autocast("cuda", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def _caller(module):
    """A function of a module with this name, which calls `method(thing)`."""
    space = {"__name__": module}
    exec("def call(method, thing):\n    return method(thing, 0)\n", space)
    return space["call"]


def test_methods_stay_for_megatron_only():
    moved = []
    method = device.stay(lambda self, *args: moved.append(args) or "moved")
    thing = object()
    assert _caller("megatron.core.utils")(method, thing) is thing and moved == []
    for other in ("__main__", "megatronic", "transformers.models"):
        assert _caller(other)(method, thing) == "moved"
    assert moved == [(0,)] * 3
