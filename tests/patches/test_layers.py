"""Tests of mindspeed_llm.patches.layers: norms and gated MLPs of megatron-core's own layers."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_geglu import bias_geglu_impl
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl, weighted_bias_swiglu_impl
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.errors import KernelError
from mindspeed_llm.kernels import activation, dispatch
from mindspeed_llm.models.norm import RMSNorm
from mindspeed_llm.patches import layers

NEW = WrappedTorchNorm.__new__
FORWARD = MLP.forward
EXPERTS_HAVE_BIASES = "output_bias = None" in inspect.getsource(FORWARD)


def config(**changes):
    values = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
              "gated_linear_unit": True, "activation_func": F.silu, "add_bias_linear": False,
              "normalization": "RMSNorm"}  # fmt: skip
    return TransformerConfig(**values | changes)


def test_the_norm_is_ours_and_equals_torchs():
    new = layers.norm(NEW)
    ours, theirs = new(WrappedTorchNorm, config(), 16, 1e-5), torch.nn.RMSNorm(16, eps=1e-5)
    assert type(ours) is RMSNorm and list(ours.state_dict()) == ["weight"]
    x = torch.randn(5, 2, 16, requires_grad=True)
    with torch.no_grad():
        for one in (ours, theirs):
            one.weight.copy_(torch.linspace(0.5, 2, 16))
    results = [
        (out := one(x), *torch.autograd.grad(out.square().sum(), (x, one.weight)))
        for one in (ours, theirs)
    ]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_it_has_what_torchs_refuses():
    wide = config(layernorm_zero_centered_gamma=True, sequence_parallel=True,
                  tensor_model_parallel_size=2)  # fmt: skip
    ours = layers.norm(NEW)(WrappedTorchNorm, wide, hidden_size=16, eps=1e-5)
    assert ours.weight.sequence_parallel and ours.zero_centered and not ours.weight.any()
    with pytest.raises(AssertionError):
        NEW(WrappedTorchNorm, wide, 16)


def test_other_norms_and_refusals_stay():
    new = layers.norm(NEW)
    assert type(new(WrappedTorchNorm, config(normalization="LayerNorm"), 16)) is torch.nn.LayerNorm
    with pytest.raises(AssertionError, match="memory_efficient"):
        new(WrappedTorchNorm, config(memory_efficient_layer_norm=True), 16)


tanh = functools.partial(F.gelu, approximate="tanh")


@pytest.mark.parametrize(("changes", "op"), [
    ({}, "swiglu"),
    ({"bias_activation_fusion": True}, "swiglu"),
    ({"activation_func": F.gelu}, "geglu_erf"),
    ({"activation_func": F.gelu, "bias_activation_fusion": True}, "geglu_tanh"),
    ({"activation_func": activation.gelu_tanh}, "geglu_tanh"),
    ({"activation_func": tanh}, "geglu_tanh"),
    ({"activation_func": F.relu}, None),
    ({"gated_linear_unit": False, "activation_func": F.gelu}, None),
    ({"glu_linear_offset": 1.0}, None),
    ({"activation_func_clamp_value": 7.0}, None),
])  # fmt: skip
def test_which_operation_an_mlp_is(changes, op):
    assert layers.gate(config(**changes)) == op


class Straight(torch.nn.Module):
    """In the place of a linear layer: the input and a bias, as megatron-core's give them."""

    def __init__(self, bias=None):
        super().__init__()
        self.given, self.bias = bias, None

    def forward(self, x):
        return x, self.given


class Stub:
    def __init__(self, config, bias=None):
        self.config, self.linear_fc1, self.linear_fc2 = config, Straight(bias), Straight()
        self.activation_func = config.activation_func


@pytest.fixture
def plain_is_fused(monkeypatch):
    """The plain kernels in the place of a device's."""
    table = {"swiglu": activation.swiglu, "geglu_tanh": activation.geglu,
             "geglu_erf": activation.geglu_erf}  # fmt: skip
    monkeypatch.setattr(layers, "_kernel", lambda op, device, dtype: table[op])


@pytest.mark.usefixtures("plain_is_fused")
@pytest.mark.parametrize(("changes", "theirs"), [
    ({}, lambda x, b: bias_swiglu_impl(x, b)),
    ({"activation_func": F.gelu, "bias_activation_fusion": True}, bias_geglu_impl),
    ({"activation_func": F.gelu}, lambda x, b: activation.geglu_erf(x if b is None else x + b)),
])  # fmt: skip
@pytest.mark.parametrize("biased", [False, True])
def test_the_product_is_megatrons(changes, theirs, biased):
    torch.manual_seed(0)
    x = torch.randn(5, 2, 24, requires_grad=True)
    bias = torch.randn(24) if biased else None
    found, _ = layers.gated_mlp(FORWARD)(Stub(config(**changes), bias), x)
    torch.testing.assert_close(found, theirs(x, bias))


@pytest.mark.usefixtures("plain_is_fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_experts_product_is_weighted(dtype):
    torch.manual_seed(0)
    x, weights = torch.randn(5, 24, dtype=dtype), torch.rand(5)
    found, _ = layers.gated_mlp(FORWARD)(Stub(config()), x, weights)
    expected = weighted_bias_swiglu_impl(x, None, weights.unsqueeze(-1))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("plain_is_fused")
@pytest.mark.skipif(
    not EXPERTS_HAVE_BIASES, reason="megatron-core below 0.15 asserts there is none"
)
def test_an_experts_bias_is_weighted_too():
    torch.manual_seed(0)
    x, weights = torch.randn(5, 24), torch.rand(5)
    results = []
    for forward in (layers.gated_mlp(FORWARD), FORWARD):
        expert = Stub(config())
        expert.linear_fc2.given = torch.arange(12.0)
        results.append(forward(expert, x, weights))
    (found, rest), (expected, nothing) = results
    assert rest is nothing is None
    torch.testing.assert_close(found, expected.reshape(found.shape))


def test_without_a_gate_gelu_is_exact_on_an_npu_and_left_alone_elsewhere(monkeypatch):
    asked, exact = [], object()
    monkeypatch.setattr(layers, "_exact", lambda *args, **need: asked.append(args) or exact)
    forward = layers.gated_mlp(lambda self, *args, **named: self.activation_func)
    plain = {"gated_linear_unit": False}
    for kind, function, used in (("npu", F.gelu, exact), ("npu", F.relu, F.relu),
                                 ("cuda", F.gelu, F.gelu)):  # fmt: skip
        x = type("There", (), {"device": type("D", (), {"type": kind}), "dtype": torch.float32})()
        mlp = Stub(config(activation_func=function, **plain))
        assert forward(mlp, x) is used
    assert asked == [("gelu_erf", "npu")]


def test_without_a_fused_kernel_the_original_runs(monkeypatch):
    asked = []
    forward = layers.gated_mlp(lambda *args, **named: asked.append(args[1:]) or "original")
    monkeypatch.setattr(layers, "_kernel", lambda *args, **need: None)
    x = torch.randn(2, 24)
    assert forward(Stub(config()), x, None) == "original" and asked[0][0] is x


def test_what_no_kernel_does_is_said_on_an_npu(monkeypatch):
    forward = layers.gated_mlp(lambda *args, **named: "original")
    device = type("Npu", (), {"type": "npu"})
    x = type("OnNpu", (), {"device": device, "dtype": torch.float32})()
    dispatch.require_fused(True)
    try:
        with pytest.raises(KernelError, match="relu.*is megatron-core's own"):
            forward(Stub(config(activation_func=F.relu)), x)
    finally:
        dispatch.require_fused(False)
