"""kernels.attention against attention written out position by position in float64."""

import pytest
import torch
import torch.nn.functional as F

from mindspeed_llm.kernels import attention as module
from mindspeed_llm.kernels import flash, flex, npu
from mindspeed_llm.kernels.attention import attention, packed_attention, visible_keys


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that the rows of these tests are cut into several blocks of queries."""
    monkeypatch.setattr(module, "CPU_BLOCK", 4)


def tensors(sq, sk, heads, groups, dim=8, batch=2):
    generator = torch.Generator().manual_seed(sq * 100 + sk)
    q = torch.randn(sq, batch, heads, dim, generator=generator)
    k, v = torch.randn(2, sk, batch, groups, dim, generator=generator)
    return q.mul(3), k.mul(3), v


def by_hand(q, k, v, *, scale, window=None, softcap=None, hidden=None):
    """The definition, one query at a time; shares no code and no layout with the kernel."""
    q, k, v = q.double(), k.double(), v.double()
    (sq, batch, heads, dim), (sk, _, groups, _) = q.shape, k.shape
    out = torch.zeros(sq, batch, heads, dim, dtype=torch.float64)
    for i in range(sq):
        at = sk - sq + i
        for b in range(batch):
            for n in range(heads):
                g = n // (heads // groups)
                keys = [j for j in range(sk) if j <= at and (window is None or at - j < window)]
                if hidden is not None:
                    rows = hidden.expand(batch, 1, sq, sk)[b, 0, i]
                    keys = [j for j in keys if not rows[j]]
                if not keys:
                    continue
                scores = k[keys, b, g] @ q[i, b, n] * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[i, b, n] = scores.softmax(0) @ v[keys, b, g]
    return out.reshape(sq, batch, heads * dim)


SHAPES = [  # queries, keys, heads, groups
    (9, 9, 4, 4), (9, 9, 4, 2), (9, 9, 4, 1),  # whole sequence: MHA, GQA, MQA
    (1, 9, 4, 2), (1, 1, 4, 2),  # one new token
    (4, 9, 4, 2), (4, 9, 4, 1),  # several new tokens on cached keys
]  # fmt: skip


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 4, 5, 8, 50])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(shape, window, softcap):
    q, k, v = tensors(*shape)
    ours = attention(q, k, v, scale=0.4, window=window, softcap=softcap)
    want = by_hand(q, k, v, scale=0.4, window=window, softcap=softcap)
    torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_gradients_it_is_the_same(shape, window):
    q, k, v = tensors(*shape)
    with torch.no_grad():
        ours = attention(q, k, v, scale=0.4, window=window)
    torch.testing.assert_close(ours, attention(q, k, v, scale=0.4, window=window))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_adds_to_causality_and_window(shape, softcap):
    sq, sk, *_ = shape
    q, k, v = tensors(*shape)
    hidden = torch.rand(2, 1, sq, sk, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[1, 0, sq - 1] = True  # a query that sees nothing
    ours = attention(q, k, v, scale=0.4, window=4, softcap=softcap, hidden=hidden)
    want = by_hand(q, k, v, scale=0.4, window=4, softcap=softcap, hidden=hidden)
    torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-5)
    assert not ours[sq - 1, 1].any()


@pytest.mark.parametrize("shape", [(1, 1, 1, 9), (2, 1, 1, 9), (1, 9)])
@pytest.mark.parametrize("sq", [1, 4])
def test_masks_that_are_broadcast(shape, sq):
    q, k, v = tensors(sq, 9, 4, 2)
    hidden = torch.zeros(shape, dtype=torch.bool)
    hidden[..., :3] = True
    ours = attention(q, k, v, scale=0.4, hidden=hidden)
    want = by_hand(q, k, v, scale=0.4, hidden=hidden)
    torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
def test_gradients_equal_the_definitions(window, softcap):
    q, k, v = (t.requires_grad_() for t in tensors(6, 6, 4, 2, batch=1))
    probe = torch.randn(6, 1, 32, generator=torch.Generator().manual_seed(3))
    options = {"scale": 0.4, "window": window, "softcap": softcap}
    got = torch.autograd.grad((attention(q, k, v, **options) * probe).sum(), (q, k, v))
    want = torch.autograd.grad((by_hand(q, k, v, **options) * probe).sum(), (q, k, v))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_are_finite_where_a_query_sees_nothing(softcap):
    q, k, v = (t.requires_grad_() for t in tensors(3, 3, 2, 2))
    hidden = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    hidden[..., 0] = True
    attention(q, k, v, scale=0.4, softcap=softcap, hidden=hidden).sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))
    assert not q.grad[0].any()


def test_dropout_drops_and_keeps_the_mean():
    q, k, v = tensors(64, 64, 2, 2)
    for softcap in (None, 50.0):
        torch.manual_seed(0)
        runs = [attention(q, k, v, scale=0.1, softcap=softcap, dropout=0.5) for _ in range(400)]
        plain = attention(q, k, v, scale=0.1, softcap=softcap)
        assert not torch.equal(runs[0], runs[1])
        assert (torch.stack(runs).mean(0) - plain).abs().mean() < 0.05


def test_one_token_without_window_needs_no_mask():
    cpu = torch.device("cpu")
    assert visible_keys(1, 7, None, cpu) is None
    assert visible_keys(1, 7, 7, cpu) is None
    assert visible_keys(1, 7, 3, cpu).tolist() == [[False] * 4 + [True] * 3]


def test_more_queries_than_keys_is_a_programming_error():
    q, k, v = tensors(3, 3, 2, 2)
    with pytest.raises(AssertionError, match="3 queries but only 2 keys"):
        attention(q, k[:2], v[:2], scale=1.0)


BOUNDS = [0, 7, 8, 20, 25]  # sequences of 7, 1, 12 and 5


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
def test_packed_sequences_equal_the_definition_alone(window, softcap):
    options = {"scale": 0.4, "window": window, "softcap": softcap}
    inputs = [t[:, 0].requires_grad_() for t in tensors(25, 25, 4, 2)]
    ours = packed_attention(*inputs, cu_seqlens=BOUNDS, **options)
    alone = torch.cat([
        by_hand(*(t[start:end, None] for t in inputs), **options)[:, 0]
        for start, end in zip(BOUNDS, BOUNDS[1:], strict=False)
    ])  # fmt: skip
    torch.testing.assert_close(ours.double(), alone, rtol=1e-5, atol=1e-5)
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((ours * probe).sum(), inputs)
    for ours, wanted in zip(found, torch.autograd.grad((alone * probe).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_packed_neighbours_leave_no_trace():
    q, k, v = (t[:, 0].requires_grad_() for t in tensors(25, 25, 4, 2))
    out = packed_attention(q, k, v, cu_seqlens=BOUNDS, scale=0.4, softcap=2.0)
    for gradient in torch.autograd.grad(out[8:20].square().sum(), (q, k, v)):
        assert not gradient[:8].any() and not gradient[20:].any() and gradient[8:20].any()
    with torch.no_grad():
        other = [torch.cat([torch.randn_like(t[:8]), t[8:20], t[20:] * 7]) for t in (q, k, v)]
        changed = packed_attention(*other, cu_seqlens=BOUNDS, scale=0.4, softcap=2.0)
    assert torch.equal(changed[8:20], out[8:20]) and not torch.equal(changed[:8], out[:8])


def test_packed_boundaries_must_cover_the_row():
    q, k, v = (t[:, 0] for t in tensors(25, 25, 2, 2))
    for bounds in ([0, 7, 20], [3, 25], [0, 9, 7, 25]):
        with pytest.raises(AssertionError, match="from 0 to t"):
            packed_attention(q, k, v, cu_seqlens=bounds, scale=0.4)


def test_what_no_kernel_takes():
    """The checks that all kernels share, plain ones and those of the devices."""
    q, k, v = tensors(4, 4, 4, 2)
    for kernel in (attention, flash.attention, flex.attention, npu.attention, npu.decode_attention):
        with pytest.raises(AssertionError, match="4 queries but only 3 keys"):
            kernel(q, k[:3], v[:3], scale=0.4)
        with pytest.raises(AssertionError, match="window of 0"):
            kernel(q, k, v, scale=0.4, window=0)
        with pytest.raises(AssertionError, match="4 heads for 3 query groups"):
            kernel(q, torch.cat((k, k), 2)[:, :, :3], v, scale=0.4)
    lacking = [(npu.attention, "softcap"), (npu.decode_attention, "softcap"),
               (npu.decode_attention, "dropout"), (flex.attention, "dropout")]  # fmt: skip
    for kernel, option in lacking:
        with pytest.raises(AssertionError, match=f"no {option}"):
            kernel(q, k, v, scale=0.4, **{option: 0.5})
    for kernel in (flash, flex, npu):
        with pytest.raises(AssertionError, match="from 0 to t"):
            kernel.packed_attention(q[:, 0], k[:, 0], v[:, 0], cu_seqlens=[0, 3], scale=0.4)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("window", "softcap"), [(None, 2.0), (5, 2.0), (3, None), (4, None)])
def test_blocks_are_the_whole(window, softcap, masked, monkeypatch):
    """Rows are done a block of queries at a time; capped scores are made again for the gradient."""
    torch.manual_seed(0)
    inputs = [torch.randn(21, 2, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    hidden = torch.rand(2, 1, 21, 21) < 0.2 if masked else None
    results = []
    for block in (4, 512):
        monkeypatch.setattr(module, "CPU_BLOCK", block)
        out = attention(*inputs, scale=0.5, window=window, softcap=softcap, hidden=hidden)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_block_is_given_keys_beyond_its_window(monkeypatch):
    """The cost of a row is its length times window and block, and not its square."""
    original, given = F.scaled_dot_product_attention, []

    def record(q, k, v, **how):
        given.append((q.shape[2], k.shape[2]))
        return original(q, k, v, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    q, k, v = tensors(32, 32, 2, 2)
    attention(q, k, v, scale=0.4, window=5)
    assert given == [(4, 4), *[(4, 8)] * 7]
    given.clear()
    attention(q[-1:], k, v, scale=0.4, window=5)
    assert given == [(1, 5)]
