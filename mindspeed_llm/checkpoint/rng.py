"""Owns the random state of one process: Python, NumPy, torch, the device, megatron's tracker.

It gives and takes plain data and tensors; where they are kept is others' business.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel import random as parallel_random


def capture() -> dict[str, Any]:
    """All random states of this process: numbers, strings and CPU tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tracker = parallel_random.get_cuda_rng_tracker().get_states()
    return {
        "python": {"version": version, "words": _tensor(words), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": _tensor(keys),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "device": parallel_random._get_cuda_rng_state(),
        "tracker": {key: value.cpu().clone() for key, value in tracker.items()},
    }


def restore(state: dict[str, Any]) -> None:
    """Inverse of `capture`: what is drawn next is what would have been drawn then."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(
        (numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"])
    )
    parallel_random._set_cuda_rng_state(state["device"])
    torch.set_rng_state(state["torch"])
    parallel_random.get_cuda_rng_tracker().set_states(dict(state["tracker"]))


def _tensor(words: Any) -> torch.Tensor:
    return torch.tensor([int(word) for word in words], dtype=torch.int64)
