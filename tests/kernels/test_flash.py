"""flash-attn's interface: on CUDA against the plain kernels; anywhere, what it is asked for."""

import sys
import types

import pytest
import torch

from mindspeed_llm.kernels import attention as plain
from mindspeed_llm.kernels import flash


@pytest.fixture
def asked(monkeypatch):
    """What the package's two functions are called with, by name."""
    calls = {}
    package = types.ModuleType("flash_attn")

    def record(name):
        def call(q, *args, **options):
            calls[name] = (q, args, options)
            return q

        return call

    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        setattr(package, name, record(name))
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(flash._PACKAGES, "cpu", "flash_attn")
    return calls


def test_a_window_counts_the_querys_own_key(asked):
    q = torch.randn(6, 2, 4, 16)
    out = flash.attention(q, q, q, scale=0.5, window=3, softcap=2.0)
    assert torch.equal(out, q.flatten(2))
    given, _, options = asked["flash_attn_func"]
    assert given.shape == (2, 6, 4, 16)
    assert options["window_size"] == (2, 0) and options["softcap"] == 2.0 and options["causal"]
    flash.attention(q, q, q, scale=0.5)
    assert asked["flash_attn_func"][2]["window_size"] == (-1, 0)


def test_packed_bounds_are_int32_with_a_leading_zero(asked):
    q = torch.randn(9, 4, 16)
    out = flash.packed_attention(q, q, q, cu_seqlens=[0, 2, 9], scale=0.5)
    _, (_, _, bounds, same, longest, _), options = asked["flash_attn_varlen_func"]
    assert torch.equal(out, q.flatten(1)) and same is bounds and longest == 7
    assert bounds.tolist() == [0, 2, 9] and bounds.dtype == torch.int32
    assert options["softcap"] == 0.0 and options["softmax_scale"] == 0.5


def test_a_mask_is_done_by_the_plain_kernel(asked):
    q = torch.randn(4, 1, 2, 16)
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    expected = plain.attention(q, q, q, scale=0.5, hidden=hidden)
    assert torch.equal(flash.attention(q, q, q, scale=0.5, hidden=hidden), expected)
    assert not asked


@pytest.mark.cuda
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, 2.0)])
def test_values_and_gradients(window, softcap):
    pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    inputs = [torch.randn(33, 2, n, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
              for n in (4, 2, 2)]  # fmt: skip
    results = []
    for function in (flash.attention, plain.attention):
        out = function(*inputs, scale=0.2, window=window, softcap=softcap)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)
