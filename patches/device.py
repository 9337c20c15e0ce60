"""Owns the torch look-alike that megatron-core sees on a machine without an accelerator.

torch and torch.cuda stay as they are for everyone else: only the global name `torch` of megatron's
modules is exchanged, and the three methods that cannot be scoped that way act for callers in
megatron only. It knows nothing of megatron's own defects.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")
_LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
_DEVICE_ARGUMENTS = ("device", "device_type", "map_location")


def is_cuda(device: Any) -> bool:
    """Whether `device` (index, name or torch.device) means a CUDA device."""
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


def on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` that takes any CUDA device for the CPU and pins no memory."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in _DEVICE_ARGUMENTS:
            if kwargs.get(name) is not None and is_cuda(kwargs[name]):
                kwargs[name] = "cpu" if name == "device_type" else CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return call


class Facade(ModuleType):
    """A module that answers like `real` but for the names in `changed`."""

    def __init__(self, real: ModuleType, changed: dict[str, Any]) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__["_real"] = real
        self.__dict__.update(changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)

    def __dir__(self) -> list[str]:
        return dir(self.__dict__["_real"])


class Stream:
    """A stream of a device that has none: everything is done when a call returns."""

    cuda_stream = 0
    device = CPU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """Nothing is ever pending."""

    def wait_event(self, event: Any) -> None:
        """Nothing is ever pending."""

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def query(self) -> bool:
        """True: nothing is ever pending."""
        return True

    def record_event(self, event: Event | None = None) -> Event:
        """The given event, or a new one, recorded now."""
        event = event or Event()
        event.record()
        return event


class Event:
    """A moment on the CPU's clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        """Keep the time."""
        self._seconds = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """Nothing is ever pending."""

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def query(self) -> bool:
        """True: nothing is ever pending."""
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to `end`."""
        return (end._seconds - self._seconds) * 1e3


def get_rng_state(device: Any = None) -> torch.Tensor:
    """State of the CPU generator, which stands for the device's."""
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: Any = None) -> None:
    """Restore the CPU generator at once (not queued until a device is initialised)."""
    torch.set_rng_state(new_state)


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


@contextlib.contextmanager
def _range(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cuda_table() -> dict[str, Any]:
    """What megatron asks of torch.cuda, answered for the CPU."""
    stream = Stream()
    nothing, zero = _constant(None), _constant(0)
    properties = SimpleNamespace(
        name="cpu", major=0, minor=0, warp_size=1, total_memory=_memory_bytes(),
        multi_processor_count=os.cpu_count() or 1,
    )  # fmt: skip
    table: dict[str, Any] = {
        "current_device": _constant(CPU),
        "device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "get_device_name": _constant("cpu"),
        "get_device_properties": _constant(properties),
        "get_device_capability": _constant((0, 0)),
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "manual_seed": lambda seed: (torch.manual_seed(seed), None)[1],
        "manual_seed_all": lambda seed: (torch.manual_seed(seed), None)[1],
        "Stream": Stream,
        "Event": Event,
        "current_stream": _constant(stream),
        "default_stream": _constant(stream),
        "stream": lambda stream=None: contextlib.nullcontext(),
        "is_current_stream_capturing": _constant(False),
        "memory_stats": lambda *args, **kwargs: defaultdict(int),
        "mem_get_info": lambda *args, **kwargs: (_memory_bytes(), _memory_bytes()),
        "nvtx": SimpleNamespace(range_push=nothing, range_pop=nothing, range=_range),
        "random": Facade(
            torch.cuda.random, {"get_rng_state": get_rng_state, "set_rng_state": set_rng_state}
        ),
    }
    table.update(dict.fromkeys(("synchronize", "set_device", "set_stream", "empty_cache"), nothing))
    table["reset_peak_memory_stats"] = nothing
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        table[name] = table[f"max_{name.removeprefix('max_')}"] = zero
    for name in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Byte"):
        table[f"{name}Tensor"] = getattr(torch, f"{name}Tensor")
    return table


class _Autocast(torch.autocast):
    """torch.autocast that takes `cuda` for the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if is_cuda(device_type) else device_type, *args, **kwargs)


def torch_facade(real: ModuleType) -> ModuleType:
    """A look-alike of torch in which every CUDA device is the CPU; `real` is not changed."""
    changed: dict[str, Any] = {"cuda": Facade(real.cuda, _cuda_table()), "autocast": _Autocast}
    for function in _device_constructors():
        if getattr(real, function.__name__, None) is function:
            changed[function.__name__] = on_cpu(function)
    for name in (*_LIKE, "load"):
        changed[name] = on_cpu(getattr(real, name))
    return Facade(real, changed)


def _called_by_megatron(depth: int = 2) -> bool:
    return str(sys._getframe(depth).f_globals.get("__name__", "")).startswith("megatron.")


def stay(original: Callable[..., Any]) -> Callable[..., Any]:
    """A moving method (`.cuda()`, `.pin_memory()`) that leaves its object where it is.

    Only for callers in megatron's modules; everyone else gets `original` and its error.
    """

    @functools.wraps(original)
    def move(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self if _called_by_megatron() else original(self, *args, **kwargs)

    return move


def cpu_type_names(original: FunctionType) -> FunctionType:
    """`original` with 'torch.cuda.FloatTensor' and its like read as 'torch.FloatTensor'."""
    return with_type_names(original, "torch.")


def with_type_names(original: FunctionType, prefix: str) -> FunctionType:
    """`original` with 'torch.cuda.FloatTensor' and its like read as `prefix` and the rest."""
    changed = FunctionType(
        _renamed(original.__code__, prefix),
        original.__globals__,
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    functools.update_wrapper(changed, original)
    changed.__kwdefaults__ = original.__kwdefaults__
    return changed


def _renamed(constant: Any, prefix: str) -> Any:
    if isinstance(constant, str):
        return constant.replace("torch.cuda.", prefix) if "Tensor" in constant else constant
    if isinstance(constant, tuple):
        return tuple(_renamed(part, prefix) for part in constant)
    if isinstance(constant, CodeType):
        return constant.replace(co_consts=_renamed(constant.co_consts, prefix))
    return constant
