"""Attention on oneDNN's products against the plain one in float64, values and gradients."""

import itertools

import pytest
import torch

from mindspeed_llm.kernels import attention as plain
from mindspeed_llm.kernels import onednn

SHAPES = [(256, 256, 1, 1), (300, 300, 2, 4), (17, 290, 1, 2), (129, 400, 2, 1)]


def both(q, k, v, grad, call, exact, dtype=torch.float32, **how):
    """(value, three gradients) of each."""
    found = []
    for function, kind in ((call, dtype), (exact, torch.float64)):
        inputs = [one.to(kind).requires_grad_() for one in (q, k, v)]
        out = function(*inputs, scale=0.3, **how)
        found.append((out, *torch.autograd.grad(out, inputs, grad.to(kind))))
    return zip(*found, strict=True)


@pytest.mark.parametrize(
    ("shape", "window", "softcap"), itertools.product(SHAPES, (None, 1, 5, 150), (None, 2.0))
)
def test_values_and_gradients_are_the_plain_ones(shape, window, softcap):
    torch.manual_seed(0)
    sq, sk, batch, groups = shape
    q = torch.randn(sq, batch, 4, 16)
    k, v = torch.randn(sk, batch, groups, 16), torch.randn(sk, batch, groups, 16)
    grad = torch.randn(sq, batch, 64)
    for ours, wanted in both(q, k, v, grad, onednn.attention, plain.attention,
                             window=window, softcap=softcap):  # fmt: skip
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (150, None), (5, 2.0)])
def test_in_bfloat16_it_is_no_less_exact_than_torchs_own(window, softcap):
    torch.manual_seed(0)
    q, k, v = (torch.randn(300, 1, heads, 16).bfloat16() for heads in (4, 2, 2))
    grad = torch.randn(300, 1, 64).bfloat16()
    how = {"window": window, "softcap": softcap, "dtype": torch.bfloat16}

    def errors(call):
        pairs = both(q, k, v, grad, call, plain.attention, **how)
        return [((ours.double() - wanted).norm() / wanted.norm()).item() for ours, wanted in pairs]

    ours, torchs = errors(onednn.attention), errors(plain.attention)
    assert max(ours) < 2**-8 and sum(ours) < 1.1 * sum(torchs), (ours, torchs)


def test_packed_sequences_see_only_themselves():
    torch.manual_seed(0)
    q, k, v = torch.randn(700, 4, 16), torch.randn(700, 2, 16), torch.randn(700, 2, 16)
    for ours, wanted in both(q, k, v, torch.randn(700, 64), onednn.packed_attention,
                             plain.packed_attention, cu_seqlens=[0, 300, 301, 310, 700],
                             window=None, softcap=None):  # fmt: skip
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=2e-5)


def test_a_caches_layout_is_read_as_it_lies():
    torch.manual_seed(0)
    store = torch.randn(2, 1, 2, 512, 16)[:, :, :, :400]  # of 512 positions, 400 are written
    k, v = (part.permute(2, 0, 1, 3) for part in store)
    q = torch.randn(40, 1, 4, 16)
    torch.testing.assert_close(onednn.attention(q, k, v, scale=0.3),
                               plain.attention(q, k, v, scale=0.3))  # fmt: skip


@pytest.mark.parametrize(("sq", "sk", "masked"), [(7, 400, False), (120, 120, False),
                                                  (256, 256, True)])  # fmt: skip
def test_what_it_is_no_quicker_with_is_the_plain_functions(monkeypatch, sq, sk, masked):
    monkeypatch.setattr(onednn._Attention, "apply", lambda *_: pytest.fail("not meant for it"))
    q, k = torch.randn(sq, 1, 4, 16), torch.randn(sk, 1, 2, 16)
    hidden = torch.zeros(sq, sk, dtype=torch.bool) if masked else None
    found = onednn.attention(q, k, k, scale=0.3, hidden=hidden)
    assert torch.equal(found, plain.attention(q, k, k, scale=0.3, hidden=hidden))


def test_what_is_hidden_is_never_made_in_inference_mode():
    onednn._hidden.cache_clear()
    q, k = torch.randn(256, 1, 4, 16), torch.randn(256, 1, 2, 16)
    with torch.inference_mode():
        onednn.attention(q, k, k, scale=0.3)
    assert (
        onednn._hidden.cache_info().currsize and not onednn._hidden(128, 128, None).is_inference()
    )
    q.requires_grad_()
    onednn.attention(q, k, k, scale=0.3).sum().backward()
    assert q.grad.isfinite().all()
