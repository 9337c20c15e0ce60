"""The norm of many gradients against that of their concatenation."""

import torch

from mindspeed_llm.kernels.grad_norm import l2_norm


def test_it_is_the_norm_of_all_elements():
    torch.manual_seed(0)
    grads = [torch.randn(3, 4), torch.randn(7).bfloat16(), torch.zeros(2), torch.randn(())]
    expected = torch.cat([grad.float().flatten() for grad in grads]).norm()
    found = l2_norm(grads)
    assert found.shape == (1,) and found.dtype == torch.float32
    torch.testing.assert_close(found[0], expected)


def test_half_precision_is_summed_in_float32():
    assert l2_norm([torch.full((4096,), 1.0, dtype=torch.bfloat16)]).item() == 64.0
