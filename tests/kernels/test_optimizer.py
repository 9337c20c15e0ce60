"""Tests of mindspeed_llm.kernels.optimizer; torch.optim is the oracle."""

from __future__ import annotations

import copy

import pytest
import torch

from mindspeed_llm.kernels.optimizer import AdamW

SETTINGS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def _parameters():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 4), (5,), ()]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def _step(parameters, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize(("mode", "oracle"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_equals_torch(mode, oracle):
    ours, theirs = _parameters(), _parameters()
    optimizers = AdamW(ours, adam_w_mode=mode, **SETTINGS), oracle(theirs, **SETTINGS)
    for seed in range(6):
        _step(ours, optimizers[0], seed)
        _step(theirs, optimizers[1], seed)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_without_bias_correction_the_first_step_is_known():
    weight = torch.tensor([1.0], requires_grad=True)
    optimizer = AdamW([weight], lr=0.1, betas=(0.9, 0.99), eps=0.0, bias_correction=False)
    weight.grad = torch.tensor([2.0])
    optimizer.step()
    # exp_avg = 0.2, exp_avg_sq = 0.04: the update is lr * 0.2 / 0.2
    assert weight.item() == pytest.approx(0.9)


def test_contract_of_fused_adam():
    parameters = _parameters()
    optimizer = AdamW(parameters, **SETTINGS)
    _step(parameters, optimizer, 0)
    _step(parameters, optimizer, 1)
    assert optimizer.param_groups[0]["step"] == 2
    for parameter in parameters:
        state = optimizer.state[parameter]
        assert set(state) == {"exp_avg", "exp_avg_sq"}
        assert {value.shape for value in state.values()} == {parameter.shape}


def test_resumed_steps_are_bit_equal():
    ours, optimizer = _parameters(), None
    optimizer = AdamW(ours, **SETTINGS)
    _step(ours, optimizer, 0)
    again = [p.detach().clone().requires_grad_() for p in ours]
    resumed = AdamW(again, **SETTINGS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _step(ours, optimizer, 1)
    _step(again, resumed, 1)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_parameters_without_gradient_stay():
    first, second = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = AdamW([{"params": [first]}, {"params": [second]}], **SETTINGS)
    first.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(second, torch.ones(2)) and not torch.equal(first, torch.ones(2))
    # all ranks must agree on the count, whichever parameters they hold
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]
    assert second not in optimizer.state


def test_closure():
    weight = torch.ones(1, requires_grad=True)
    optimizer = AdamW([weight])

    def closure():
        loss = (weight * 3).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert weight.item() < 1


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"eps": -1e-8}, {"betas": (1.0, 0.9)}, {"weight_decay": -0.1}]
)
def test_ranges(wrong):
    with pytest.raises(ValueError, match="must not be negative"):
        AdamW([torch.ones(1, requires_grad=True)], **wrong)


def test_a_step_in_a_cuda_graph_is_refused():
    AdamW(_parameters(), capturable=False)  # megatron-core 0.17 and newer say it
    with pytest.raises(ValueError, match="optimizer_cuda_graph"):
        AdamW(_parameters(), capturable=True)
