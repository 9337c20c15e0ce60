"""What of the NPU's kernels runs without torch_npu; their operators run in tests/virtual_npu."""

import pytest
import torch
import torch.nn.functional as F

from mindspeed_llm.kernels import npu


def test_operators_without_derivative_are_refused_while_gradients_are_on():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="some_op has no derivative"):
        npu.refuse_gradients("some_op", torch.ones(2), x)
    npu.refuse_gradients("some_op", torch.ones(2))
    with torch.no_grad():
        npu.refuse_gradients("some_op", x)


def test_decoding_refuses_gradients_before_it_calls_anything():
    q = torch.ones(1, 1, 2, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="npu_fused_infer_attention_score has no derivative"):
        npu.decode_attention(q, q, q, scale=1.0)


def test_the_compressed_mask_hides_what_comes_later_and_is_made_once():
    mask = npu.compressed_mask(torch.device("cpu"))
    assert mask.shape == (2048, 2048) and mask.dtype == torch.bool
    assert torch.equal(mask, torch.ones(2048, 2048, dtype=torch.bool).triu(1))
    assert npu.compressed_mask(torch.device("cpu")) is mask


def test_erf_is_written_out_where_gelu_would_be_tanh():
    x = torch.randn(5, 12)
    gate, up = x.chunk(2, -1)
    exact = F.gelu(gate) * up
    torch.testing.assert_close(npu.geglu_erf_written_out(x), exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(npu.gelu_erf_written_out(gate), F.gelu(gate), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(F.gelu(gate, approximate="tanh") * up, exact, atol=1e-6)


@pytest.mark.parametrize("kernel", [npu.swiglu, npu.geglu_tanh, npu.geglu_erf])
def test_empty_tensors_reach_no_operator(kernel):
    assert kernel(torch.empty(0, 8)).shape == (0, 4)


def test_an_empty_norm_reaches_no_operator():
    assert npu.rms_norm(torch.empty(0, 8), torch.ones(8), 1e-6, zero_centered=True).shape == (0, 8)
