"""kernels.activation against transformers' activations; picklable, since configs hold them."""

import copy
import pickle

import pytest
import torch
from transformers.activations import ACT2FN

from mindspeed_llm.kernels.activation import ACTIVATIONS, geglu, geglu_erf, swiglu

THEIRS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def test_every_activation_has_its_counterpart():
    assert set(THEIRS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_equals_transformers(name):
    x = torch.linspace(-6, 6, 1001)
    assert torch.equal(ACTIVATIONS[name](x), ACT2FN[THEIRS[name]](x))


def test_the_two_gelus_differ():
    x = torch.linspace(-6, 6, 1001)
    assert (ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_tanh"](x)).abs().max() > 1e-4


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_can_be_copied_and_pickled(name):
    function = ACTIVATIONS[name]
    assert copy.deepcopy(function) is function
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize(("gated", "name"), [
    (swiglu, "silu"), (geglu, "gelu_tanh"), (geglu_erf, "gelu"),
])  # fmt: skip
def test_gated_units_take_the_gate_first(gated, name):
    torch.manual_seed(0)
    gate, up = torch.randn(2, 3, 5, dtype=torch.float64)
    joined = torch.cat((gate, up), dim=-1).requires_grad_()
    assert torch.equal(gated(joined), ACTIVATIONS[name](gate) * up)
    assert torch.autograd.gradcheck(gated, joined)
