"""kernels.load_balance: values by hand, transformers' own loss, tokens that do not count."""

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mindspeed_llm.kernels.load_balance import load_balance


def drawn(tokens=12, experts=5, top_k=2):
    logits = torch.randn(tokens, experts, generator=torch.manual_seed(3), requires_grad=True)
    best = logits.topk(top_k).indices
    return logits, torch.zeros(tokens, experts, dtype=torch.bool).scatter(1, best, True)


def test_equals_transformers_with_gradient():
    """There it is the top-k fold, since all choices of a token are counted as one."""
    logits, chosen = drawn()
    counted = torch.ones(12, dtype=torch.bool)
    counted[3:5] = False
    loss, tokens = load_balance(logits, chosen, counted)
    theirs = load_balancing_loss_func((logits,), 5, 2, counted[None].float()) / 2
    assert tokens == 10
    torch.testing.assert_close(loss, theirs, rtol=1e-6, atol=0)
    ours, expected = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, theirs))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-8)
    assert not ours[3:5].any() and ours[0].any()


def test_is_one_where_all_experts_are_used_alike_and_their_number_where_one_is():
    even = torch.eye(4, dtype=torch.bool)
    counted = torch.ones(4, dtype=torch.bool)
    assert load_balance(torch.zeros(4, 4), even, counted)[0] == pytest.approx(1.0)
    one = torch.zeros(4, 4, dtype=torch.bool)
    one[:, 2] = True
    logits = torch.where(one, 50.0, 0.0)
    assert load_balance(logits, one, counted)[0] == pytest.approx(4.0)


def test_nothing_counts():
    logits, chosen = drawn()
    loss, tokens = load_balance(logits, chosen, torch.zeros(12, dtype=torch.bool))
    assert loss == tokens == 0


def summands():
    """Runs on each of two ranks: its share of the tokens, and the loss of all of them."""
    import torch
    import torch.distributed as dist

    from mindspeed_llm.kernels.load_balance import load_balance

    logits = torch.randn(12, 5, generator=torch.manual_seed(3))
    chosen = torch.zeros(12, 5, dtype=torch.bool).scatter(1, logits.topk(2).indices, True)
    counted = torch.arange(12) != 4
    own = slice(0, 5) if dist.get_rank() == 0 else slice(5, 12)
    whole, _ = load_balance(logits, chosen, counted)
    mine, tokens = load_balance(logits[own], chosen[own], counted[own], dist.group.WORLD)
    return [float(whole), float(mine), float(tokens)]


def test_ranks_with_different_tokens_have_summands(run_ranks):
    answers = run_ranks(2, summands)
    assert sum(mine for _, mine, _ in answers) == pytest.approx(answers[0][0], rel=1e-6)
    assert [tokens for *_, tokens in answers] == [11, 11]
