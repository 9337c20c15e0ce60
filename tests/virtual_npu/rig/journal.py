"""Owns the record of fused operators: which ran, in which layer, forward or backward.

A layer is found on the Python stack, where a module with `layer_number` is at work; backward
kernels run outside of it and are matched by the memory of the input that the forward pass saved.
With VIRTUAL_NPU_JOURNAL=PREFIX each process leaves PREFIX.<rank>.jsonl behind.
"""

import atexit
import json
import os
import sys

entries = []
_places = {}  # memory of a saved input -> the place of the forward call
_INPUTS = ("query", "input")


def write(operator, arguments):
    """Record one call with what tests ask about."""
    backward = operator.endswith(("_backward", "_grad", "_grad_v3"))
    saved = next((getattr(arguments, n) for n in _INPUTS if hasattr(arguments, n)), None)
    key = None if saved is None else (saved.data_ptr(), tuple(saved.shape))
    if backward:
        place = _places.get(key, (None, None))
    else:
        place = _places[key] = _place()
    layer, module = place
    entry = {"op": operator, "backward": backward, "layer": layer, "module": module}
    for name in (
        "input_layout",
        "sparse_mode",
        "pre_tockens",
        "activate_left",
        "approximate",
        "rotary_mode",
    ):
        if hasattr(arguments, name):
            entry[name] = getattr(arguments, name)
    if hasattr(arguments, "gamma"):
        entry["gamma"] = str(arguments.gamma.dtype)
    if hasattr(arguments, "atten_mask"):
        entry["masked"] = arguments.atten_mask is not None
    if saved is not None:
        entry["dtype"], entry["shape"] = str(saved.dtype), list(saved.shape)
    entries.append(entry)


def _place():
    """(layer number, class of the innermost module) of the Python code that is running."""
    frame, module = sys._getframe(2), None
    while frame is not None:
        owner = frame.f_locals.get("self")
        if module is None and hasattr(owner, "named_parameters"):
            module = type(owner).__name__
        layer = getattr(owner, "layer_number", None)
        if isinstance(layer, int):
            return layer, module
        frame = frame.f_back
    return None, module


def _leave(prefix):
    if not entries:  # torchrun's own process stands beside its rank 0
        return
    with open(f"{prefix}.{os.environ.get('RANK', '0')}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


if os.environ.get("VIRTUAL_NPU_JOURNAL"):
    atexit.register(_leave, os.environ["VIRTUAL_NPU_JOURNAL"])
