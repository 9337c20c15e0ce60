"""Liger's kernels against the plain ones; they need a GPU."""

import pytest
import torch

from mindspeed_llm.kernels import activation, liger, rms_norm

pytestmark = pytest.mark.cuda


def both(ours, reference, inputs):
    pytest.importorskip("liger_kernel")
    results = []
    for function in (ours, reference):
        out = function(*inputs)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("zero_centered", [False, True])
def test_rms_norm(zero_centered):
    torch.manual_seed(0)
    inputs = [
        torch.randn(*shape, device="cuda", requires_grad=True) for shape in ((9, 2, 64), (64,))
    ]
    how = {"epsilon": 1e-6, "zero_centered": zero_centered}
    both(lambda x, w: liger.rms_norm(x, w, **how), lambda x, w: rms_norm.rms_norm(x, w, **how),
         inputs)  # fmt: skip


@pytest.mark.parametrize(("ours", "reference"), [
    (liger.swiglu, activation.swiglu), (liger.geglu_tanh, activation.geglu),
])  # fmt: skip
def test_gated_activations(ours, reference):
    torch.manual_seed(0)
    both(ours, reference, [torch.randn(9, 2, 128, device="cuda", requires_grad=True)])
