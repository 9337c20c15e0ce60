"""Liger's kernels against the plain ones: compiled on a GPU, and anywhere in Triton's interpreter,
where liger_kernel and triton are installed (`pip install --no-deps liger-kernel triton`)."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from mindspeed_llm.kernels import activation, liger, rms_norm

MISSING = [name for name in ("liger_kernel", "triton") if not importlib.util.find_spec(name)]

# Triton 3.9's interpreter leaves out what the compiler does: numbers become tensors, and functions
# of CUDA's own library have to be Triton's.
INTERPRETED = """
import json, sys
import numpy, torch, triton.language as tl
from triton.runtime import interpreter
from liger_kernel.ops import geglu, rms_norm as norm
from mindspeed_llm.kernels import activation, liger, rms_norm

convert = interpreter._implicit_cvt
def with_numbers(value):
    if not isinstance(value, float):
        return convert(value)
    handle = interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), tl.float32)
    return tl.tensor(handle, tl.float32)
interpreter._implicit_cvt = with_numbers
norm.rsqrt = lambda x: tl.math.rsqrt(x)
geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1

def both(ours, plain, *shapes):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    results = []
    for function in (ours, plain):
        out = function(*inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    pairs = zip(*results, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)

found = {}
for offset in (False, True):
    found[f"rms_norm {offset}"] = both(
        lambda x, w: liger.rms_norm(x, w, 1e-6, zero_centered=offset),
        lambda x, w: rms_norm.rms_norm(x, w, 1e-6, zero_centered=offset), (9, 2, 64), (64,))
found["swiglu"] = both(liger.swiglu, activation.swiglu, (9, 2, 128))
found["geglu"] = both(liger.geglu_tanh, activation.geglu, (9, 2, 128))
print(json.dumps(found))
"""


@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not installed")
def test_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED], text=True, capture_output=True,
        env=os.environ | {"TRITON_INTERPRET": "1"}, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4 and max(found.values()) < 1e-5, found


def both(ours, reference, inputs):
    pytest.importorskip("liger_kernel")
    results = []
    for function in (ours, reference):
        out = function(*inputs)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("zero_centered", [False, True])
def test_rms_norm(zero_centered):
    torch.manual_seed(0)
    inputs = [
        torch.randn(*shape, device="cuda", requires_grad=True) for shape in ((9, 2, 64), (64,))
    ]
    how = {"epsilon": 1e-6, "zero_centered": zero_centered}
    both(lambda x, w: liger.rms_norm(x, w, **how), lambda x, w: rms_norm.rms_norm(x, w, **how),
         inputs)  # fmt: skip


@pytest.mark.cuda
@pytest.mark.parametrize(("ours", "reference"), [
    (liger.swiglu, activation.swiglu), (liger.geglu_tanh, activation.geglu),
])  # fmt: skip
def test_gated_activations(ours, reference):
    torch.manual_seed(0)
    both(ours, reference, [torch.randn(9, 2, 128, device="cuda", requires_grad=True)])
