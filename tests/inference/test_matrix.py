"""A product on a weight that was laid out anew is the product."""

import pytest
import torch
import torch.nn.functional as F

from mindspeed_llm.inference import matrix as matrices
from mindspeed_llm.inference.matrix import Matrix
from mindspeed_llm.kernels.linear import onednn

HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _sides(dtype: torch.dtype, biased: bool) -> tuple[torch.nn.Parameter, torch.Tensor | None]:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(70, 33, dtype=dtype), requires_grad=False)
    return weight, torch.randn(70, dtype=dtype) if biased else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("faster", [None, onednn])
def test_the_product_is_the_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, biased: bool, rows: int, faster: object
) -> None:
    monkeypatch.setattr(matrices, "fused", lambda *_, **__: faster)
    weight, bias = _sides(dtype, biased)
    x = torch.randn(rows, 33, dtype=dtype)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    plain = F.linear(x.double(), weight.double())
    matrix = Matrix(weight, bias)
    # One rounding of the result, half an eighth of a bit in bfloat16.
    close = {"rtol": 2**-8 if dtype is torch.bfloat16 else 1e-5, "atol": 1e-2
             if dtype is torch.bfloat16 else 1e-5}  # fmt: skip
    torch.testing.assert_close(matrix(x).double(), exact, **close)
    torch.testing.assert_close(matrix.alone(x).double(), plain, **close)
    before = torch.randn(rows, 70, dtype=dtype)
    added = matrix.added(before, x)
    if dtype is torch.bfloat16:
        assert torch.equal(added, before + matrix(x)), "the product is rounded first"
    else:
        torch.testing.assert_close(added.double(), exact + before.double(), **close)
    assert matrix(x).dtype is added.dtype is dtype


def test_wide_ones_lie_along_one_tokens_product_and_keep_their_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matrices, "fused", lambda *_, **__: None)
    weight, _ = _sides(torch.float32, False)
    before, tall = weight.clone(), torch.nn.Parameter(weight.t().contiguous(), requires_grad=False)
    Matrix(weight), Matrix(tall)
    assert torch.equal(weight, before)
    assert weight.stride() == (1, 70) and tall.stride() == (70, 1)


@pytest.mark.skipif(not HAS_BF16, reason="oneDNN does not compute in bfloat16 on this processor")
def test_there_is_never_a_second_weight_but_where_it_is_shared() -> None:
    weight, shared = _sides(torch.bfloat16, False)[0], _sides(torch.bfloat16, False)[0]
    assert Matrix(weight).is_packed and weight.numel() == 0
    assert Matrix(shared, shared=True).is_packed and shared.numel() == 70 * 33


def test_a_float32_weight_that_is_shared_is_never_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "fused", lambda *_, **__: onednn)
    weight, shared = _sides(torch.float32, False)[0], _sides(torch.float32, False)[0]
    assert Matrix(weight).is_packed and weight.numel() == 0
    before = shared.clone()
    found = Matrix(shared, shared=True)
    assert not found.is_packed and torch.equal(shared, before) and found.weight is shared
    assert shared.is_contiguous()
