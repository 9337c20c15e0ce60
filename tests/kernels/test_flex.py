"""FlexAttention against the plain kernels: uncompiled on the CPU, where torch has no backward pass
for it, and compiled with gradients on CUDA."""

import pytest
import torch

from mindspeed_llm.kernels import attention as plain
from mindspeed_llm.kernels import flex

CASES = [(None, None), (3, None), (None, 2.0), (5, 2.0)]


def tensors(shape, groups, device="cpu"):
    torch.manual_seed(0)
    q = torch.randn(shape, device=device) * 2
    k, v = (torch.randn(*shape[:-2], groups, shape[-1], device=device) for _ in range(2))
    return [t.requires_grad_(device == "cuda") for t in (q, k, v)]


def both(ours, reference, inputs, **options):
    results = []
    for function in (ours, reference):
        out = function(*inputs, scale=0.3, **options)
        back = [inputs] if out.requires_grad else []
        results.append((out, *(g for i in back for g in torch.autograd.grad(out.sum(), i))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return request.param


@pytest.mark.parametrize(("window", "softcap"), CASES)
def test_whole_rows(window, softcap, device):
    both(flex.attention, plain.attention, tensors((17, 2, 4, 16), 2, device), window=window,
         softcap=softcap)  # fmt: skip


@pytest.mark.parametrize(("window", "softcap"), CASES)
def test_packed_rows(window, softcap, device):
    both(flex.packed_attention, plain.packed_attention, tensors((19, 4, 16), 2, device),
         cu_seqlens=[0, 6, 7, 19], window=window, softcap=softcap)  # fmt: skip


def test_queries_are_the_last_of_the_keys():
    q, k, v = tensors((9, 1, 4, 16), 4)
    found = flex.attention(q[-2:], k, v, scale=0.3, window=4)
    torch.testing.assert_close(found, plain.attention(q, k, v, scale=0.3, window=4)[-2:])


def test_a_mask_is_done_by_the_plain_kernel():
    q, k, v = tensors((6, 1, 4, 16), 4)
    hidden = torch.zeros(6, 6, dtype=torch.bool)
    hidden[:, 1] = True
    expected = plain.attention(q, k, v, scale=0.3, hidden=hidden)
    assert torch.equal(flex.attention(q, k, v, scale=0.3, hidden=hidden), expected)
