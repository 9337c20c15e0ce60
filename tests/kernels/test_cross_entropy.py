"""kernels.cross_entropy against the definition in float64, whole and split over ranks."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_llm.kernels.cross_entropy import summed_cross_entropy

ROWS, HIDDEN, VOCAB = 23, 16, 50


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator) * 2
    targets = torch.randint(0, 47, (ROWS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def by_hand(hidden, weight, targets, softcap=None, vocab_size=VOCAB):
    logits = hidden.double() @ weight.double().t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits[:, :vocab_size], targets, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 7 * VOCAB, 1 << 20], ids=["1 row", "7 rows", "all"])
@pytest.mark.parametrize("vocab_size", [VOCAB, 47])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_equals_the_definition(softcap, vocab_size, chunk):
    hidden, weight, targets = tensors()
    how = {"softcap": softcap, "vocab_size": vocab_size}
    loss = summed_cross_entropy(hidden, weight, targets, chunk=chunk, **how)
    wanted = by_hand(hidden, weight, targets, **how)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    found = torch.autograd.grad(loss / 3, (hidden, weight))
    for ours, theirs in zip(found, torch.autograd.grad(wanted / 3, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not found[1][vocab_size:].any()


def test_the_soft_cap_of_the_test_is_exceeded():
    hidden, weight, _ = tensors()
    assert (hidden @ weight.t()).abs().max() > 10


def test_bfloat16_sums_over_chunks_in_float32():
    hidden, weight, targets = tensors(torch.bfloat16)
    found = summed_cross_entropy(hidden, weight, targets, chunk=VOCAB)
    whole = by_hand(hidden, weight, targets)
    assert found.item() == pytest.approx(whole.item(), rel=1e-2)
    ours, theirs = (torch.autograd.grad(loss, weight)[0].float() for loss in (found, whole))
    assert (ours - theirs).norm() / theirs.norm() < 1e-2


def test_nothing_to_choose_is_zero_with_a_gradient_of_zeros():
    hidden, weight, targets = tensors()
    loss = summed_cross_entropy(hidden[:0], weight, targets[:0])
    loss.backward()
    assert loss.item() == 0.0 and not weight.grad.any() and not hidden.grad.any()


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, targets = tensors()
    loss = summed_cross_entropy(hidden, weight.detach(), targets)
    wanted = torch.autograd.grad(by_hand(hidden, weight, targets), hidden)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], wanted, rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_logits_never_exist_whole(softcap):
    rows, vocab = 512, 1000
    hidden = torch.randn(rows, 8, requires_grad=True)
    weight = torch.randn(vocab, 8, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,))
    with Largest() as seen:
        loss = summed_cross_entropy(hidden, weight, targets, softcap=softcap, chunk=16 * vocab)
        loss.backward()
    assert seen.elements == 16 * vocab
    with Largest() as seen:
        by_hand(hidden, weight, targets, softcap, vocab).backward()
    assert seen.elements == rows * vocab  # what the measure finds where they do


def split():
    """Runs in a rank: this rank's half of the vocabulary, padded from 47 to 50."""
    import torch
    import torch.distributed as dist

    from mindspeed_llm.kernels.cross_entropy import summed_cross_entropy

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator).requires_grad_()
    weight = (torch.randn(50, 16, generator=generator) * 2).requires_grad_()
    targets = torch.randint(0, 47, (23,), generator=generator)
    first = 25 * dist.get_rank()
    mine = weight[first : first + 25]
    results = {}
    for softcap in (None, 5.0):
        how = {"softcap": softcap, "vocab_size": 47, "chunk": 6 * 25}
        parts = summed_cross_entropy(hidden, mine, targets, first=first, group=dist.group.WORLD,
                                     **how)  # fmt: skip
        whole = summed_cross_entropy(hidden, weight, targets, **how)
        found, wanted = (torch.autograd.grad(loss, (hidden, weight)) for loss in (parts, whole))
        half = slice(first, first + 25)
        results[str(softcap)] = [
            abs(parts.item() / whole.item() - 1),
            ((found[0] - wanted[0]).norm() / wanted[0].norm()).item(),
            ((found[1][half] - wanted[1][half]).norm() / wanted[1][half].norm()).item(),
        ]
    empty = summed_cross_entropy(hidden[:0], mine, targets[:0], group=dist.group.WORLD)
    return results | {"empty": [empty.item()]}


def test_a_split_vocabulary_equals_the_whole(run_ranks):
    for rank in run_ranks(2, split):
        assert all(error < 1e-6 for errors in rank.values() for error in errors), rank
