"""The comparison of kernels passes on the CPU, fails for a wrong kernel, and covers the table."""

import pytest
import torch

from mindspeed_llm.kernels import parity
from mindspeed_llm.kernels.dispatch import Candidate, Need
from mindspeed_llm.kernels.table import operations

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_plain_kernels_equal_themselves(dtype):
    results = list(parity.compare(CPU, dtype))
    assert [r for r in results if r.state == "fail"] == []
    passed = {r.name for r in results if r.state == "pass"}
    assert passed == {check.name for check in parity.CHECKS}
    assert all(r.reason for r in results if r.state == "skipped")


def test_every_operation_is_compared():
    assert {check.op for check in parity.CHECKS} == set(operations())
    names = [check.name for check in parity.CHECKS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("place", ["activation:geglu", "rotary:rotate", "nowhere:f"])
def test_a_wrong_kernel_fails(place):
    check = next(check for check in parity.CHECKS if check.op == "swiglu")
    result = parity._result(check, Candidate("wrong", place, "", fused=True), CPU, Need())
    assert result.state == "fail" and result.reason


def test_a_wrong_gradient_fails(monkeypatch):
    from mindspeed_llm.kernels import activation

    good = activation.swiglu
    wrong = staticmethod(lambda x: good(x.detach()) + 0.0 * x.chunk(2, -1)[0])
    monkeypatch.setattr(activation, "wrong", wrong.__func__, raising=False)
    check = next(check for check in parity.CHECKS if check.op == "swiglu")
    result = parity._result(check, Candidate("wrong", "activation:wrong", ""), CPU, Need())
    assert result.state == "fail" and result.error > 0.5


def test_a_gradient_that_is_no_number_fails(monkeypatch):
    from mindspeed_llm.kernels import activation

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return activation.swiglu(x)

        @staticmethod
        def backward(ctx, grad):
            return ctx.saved_tensors[0] * float("nan")

    monkeypatch.setattr(activation, "broken", Broken.apply, raising=False)
    check = next(check for check in parity.CHECKS if check.op == "swiglu")
    result = parity._result(check, Candidate("broken", "activation:broken", ""), CPU, Need())
    assert result.state == "fail"


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_cuda_kernels(dtype):
    results = list(parity.compare(torch.device("cuda", 0), dtype))
    assert [r for r in results if r.state == "fail"] == []
