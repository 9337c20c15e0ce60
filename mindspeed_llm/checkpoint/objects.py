"""Owns plain Python state as JSON: numbers, strings, containers and tensors, and nothing else.

It stands where others would put a pickle: an object of any other kind is refused by its path.
Exact both ways: tuples stay tuples, integer keys stay integers, floats keep every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_llm.checkpoint.tensor_file import DTYPE_NAMES, DTYPES
from mindspeed_llm.errors import CheckpointError

_TAG = "__kind__"


def pack(value: Any, keep_tensor: Callable[[torch.Tensor], str], where: str = "state") -> Any:
    """`value` as JSON data.

    Args:
        keep_tensor: stores a tensor and returns the name under which `unpack` asks for it.
        where: path of `value` for the message.

    Raises:
        CheckpointError: an object that is neither plain data nor a tensor; names its path.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_TAG: "float", "value": repr(value)}
    if isinstance(value, torch.dtype):
        return {_TAG: "dtype", "value": DTYPE_NAMES[value]}
    if isinstance(value, torch.Tensor):
        return {_TAG: "tensor", "value": keep_tensor(value.detach())}
    if isinstance(value, list):
        return [pack(v, keep_tensor, f"{where}[{i}]") for i, v in enumerate(value)]
    if type(value) is tuple:
        items = [pack(v, keep_tensor, f"{where}[{i}]") for i, v in enumerate(value)]
        return {_TAG: "tuple", "value": items}
    if isinstance(value, dict):
        return _pack_dict(value, keep_tensor, where)
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds "
        "numbers, strings, lists, tuples, dicts and tensors (no pickled objects)"
    )


def _pack_dict(value: dict, keep_tensor: Callable[[torch.Tensor], str], where: str) -> Any:
    if all(isinstance(key, str) for key in value) and _TAG not in value:
        return {k: pack(v, keep_tensor, f"{where}.{k}") for k, v in value.items()}
    pairs = [
        [pack(k, keep_tensor, where), pack(v, keep_tensor, f"{where}[{k!r}]")]
        for k, v in value.items()
    ]
    return {_TAG: "dict", "value": pairs}


def unpack(data: Any, find_tensor: Callable[[str], torch.Tensor]) -> Any:
    """Inverse of `pack`.

    Args:
        find_tensor: gives the tensor of a name that `keep_tensor` returned.

    Raises:
        CheckpointError: data that `pack` does not write.
    """
    if isinstance(data, list):
        return [unpack(item, find_tensor) for item in data]
    if not isinstance(data, dict):
        return data
    if _TAG not in data:
        return {key: unpack(item, find_tensor) for key, item in data.items()}
    kind, value = data[_TAG], data.get("value")
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind == "dtype" and value in DTYPES:
        return DTYPES[value]
    if kind == "tensor" and isinstance(value, str):
        return find_tensor(value)
    if kind == "tuple" and isinstance(value, list):
        return tuple(unpack(item, find_tensor) for item in value)
    if kind == "dict" and isinstance(value, list):
        return {unpack(k, find_tensor): unpack(v, find_tensor) for k, v in value}
    raise CheckpointError(f"malformed state in the checkpoint: {kind!r:.80} {value!r:.80}")
