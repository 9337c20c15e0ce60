"""kernels.rms_norm against transformers' norms, bit for bit, and its gradient."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mindspeed_llm.kernels.rms_norm import rms_norm

NORMS = [(LlamaRMSNorm, False), (Gemma2RMSNorm, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("norm", "zero_centered"), NORMS)
def test_equals_transformers_bit_for_bit(norm, zero_centered, dtype):
    torch.manual_seed(0)
    theirs = norm(48, eps=1e-5).to(dtype)
    theirs.weight.data.normal_(0.5, 0.3)
    x = torch.randn(5, 3, 48).mul(7).to(dtype)
    ours = rms_norm(x, theirs.weight, 1e-5, zero_centered=zero_centered)
    assert ours.dtype is dtype
    assert torch.equal(ours, theirs(x))


def test_the_two_rounding_orders_differ_in_bfloat16():
    """If they did not, the test above would not tell them apart."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 48).bfloat16(), torch.randn(48).bfloat16()
    llama = rms_norm(x, weight, 1e-6, zero_centered=False)
    gemma = rms_norm(x, (weight.float() - 1).bfloat16(), 1e-6, zero_centered=True)
    assert not torch.equal(llama, gemma)


@pytest.mark.parametrize("zero_centered", [False, True])
def test_gradients(zero_centered):
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    ours = rms_norm(x, weight, 1e-6, zero_centered=zero_centered)
    scale = 1 + weight if zero_centered else weight
    exact = torch.nn.functional.rms_norm(x, (6,), eps=1e-6) * scale
    probe = torch.randn_like(exact)
    got = torch.autograd.grad((ours * probe).sum(), (x, weight), retain_graph=True)
    want = torch.autograd.grad((exact * probe).sum(), (x, weight))
    for a, b in zip(got, want, strict=True):  # float32 inside, whatever goes in
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
