"""Products with a weight, and their gradients, against float64; where oneDNN is taken."""

from pathlib import Path

import pytest
import torch

from mindspeed_llm.kernels import linear


@pytest.mark.parametrize("multiply", [linear.plain, linear.onednn])
@pytest.mark.parametrize("leading", [(7,), (3, 2), (1, 1), (0, 2)])
def test_value_and_gradients_are_those_of_the_product(multiply, leading):
    torch.manual_seed(0)
    x, weight, grad = torch.randn(*leading, 33), torch.randn(70, 33), torch.randn(*leading, 70)
    found, exact = [], []
    for kind, call, results in (
        (torch.float32, multiply, found),
        (torch.float64, lambda x, w: x @ w.t(), exact),
    ):
        inputs = [one.to(kind).requires_grad_() for one in (x, weight)]
        out = call(*inputs)
        results += [out, *torch.autograd.grad(out, inputs, grad.to(kind))]
    for ours, wanted in zip(found, exact, strict=True):
        assert ours.shape == wanted.shape and ours.dtype is torch.float32
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multiply", [linear.plain, linear.onednn])
def test_inputs_may_lie_transposed(multiply):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 33).transpose(0, 1), torch.randn(33, 70).t()
    torch.testing.assert_close(multiply(x, weight), torch.einsum("abi,oi->abo", x, weight))


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_gradient_nobody_wants_is_not_computed(monkeypatch, frozen):
    calls = []
    real = linear.product
    monkeypatch.setattr(linear, "product", lambda x, w: calls.append(1) or real(x, w))
    inputs = [torch.randn(4, 33, requires_grad=True), torch.randn(70, 33, requires_grad=True)]
    inputs[frozen].requires_grad_(False)
    linear.onednn(*inputs).sum().backward()
    assert len(calls) == 2 and inputs[frozen].grad is None and inputs[1 - frozen].grad is not None


@pytest.mark.parametrize(
    ("capability", "cpuinfo", "expected"),
    [
        ("AVX2", "vendor_id : AuthenticAMD", "no AVX-512"),
        ("AVX512", "vendor_id : GenuineIntel", "MKL has AVX-512 kernels"),
        ("AVX512", None, "maker is unknown"),
        ("AVX512", "vendor_id : AuthenticAMD", None),
    ],
)
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
def test_where_mkl_suffices(monkeypatch, capability, cpuinfo, expected):
    def read(self, encoding):
        assert str(self) == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError("no such file")
        return cpuinfo

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(Path, "read_text", read)
    found = linear.mkl_suffices.__wrapped__()
    assert found == expected if expected is None else expected in found
