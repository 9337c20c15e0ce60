"""Our kernels where megatron-core has no seam: rotation and the norm of gradients."""

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.optimizer import clip_grads
from megatron.core.tensor_parallel import layers
from megatron.core.utils import local_multi_tensor_l2_norm

from mindspeed_llm.kernels.linear import onednn
from mindspeed_llm.patches import fusions

ROTATE = rope_utils._apply_rotary_pos_emb_bshd
OPTIONS = [(24, False, False, 1.0), (16, False, False, 1.0), (24, True, False, 1.0),
           (16, True, False, 1.3), (24, False, True, 0.8), (16, False, True, 1.3)]  # fmt: skip


@pytest.mark.parametrize(("turning", "interleaved", "mla", "mscale"), OPTIONS)
def test_rotation_is_megatrons(turning, interleaved, mla, mscale):
    torch.manual_seed(0)
    x = torch.randn(7, 2, 4, 24, requires_grad=True)
    freqs = torch.randn(7, 1, 1, turning)
    results = []
    for rotate in (fusions.rotary(ROTATE), ROTATE):
        out = rotate(x, freqs, rotary_interleaved=interleaved, multi_latent_attention=mla,
                     mscale=mscale)  # fmt: skip
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_packed_rotation_comes_through_it(monkeypatch):
    seen = []
    monkeypatch.setattr(rope_utils, "_apply_rotary_pos_emb_bshd", fusions.rotary(ROTATE))
    monkeypatch.setattr(fusions, "_rotation", lambda *args, **need: seen.append(need) or (
        lambda x, angle, interleaved, scale: x))  # fmt: skip
    group = type("Alone", (), {"size": lambda self: 1, "rank": lambda self: 0})()
    x, bounds = torch.randn(9, 4, 24), torch.tensor([0, 4, 9], dtype=torch.int32)
    rope_utils._apply_rotary_pos_emb_thd(x, bounds, torch.randn(5, 1, 1, 24), cp_group=group)
    assert seen and seen[0]["head_dim"] == 24


def test_norm_of_gradients_is_the_same_without_waiting():
    torch.manual_seed(0)
    grads = [torch.randn(5, 3), torch.randn(11)]
    ours = fusions.gradient_norm(local_multi_tensor_l2_norm)
    found, nothing = ours(1, torch.zeros(1), [grads], False)
    assert nothing is None and found.shape == (1,)
    torch.testing.assert_close(found[0], torch.cat([g.flatten() for g in grads]).norm())


def test_other_peoples_norm_stays():
    def multi_tensor_l2norm():
        return None

    assert fusions.gradient_norm(multi_tensor_l2norm) is multi_tensor_l2norm
    assert clip_grads.l2_norm_impl.__name__ == "local_multi_tensor_l2_norm"


LINEAR = layers.linear_with_grad_accumulation_and_async_allreduce
FROZEN = layers.linear_with_frozen_weight


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("original", [LINEAR, FROZEN])
def test_a_linear_layer_is_megatrons(monkeypatch, original, biased):
    monkeypatch.setattr(fusions, "_fused", lambda op, device, dtype: onednn)
    torch.manual_seed(0)
    x, weight = torch.randn(5, 2, 33, requires_grad=True), torch.randn(70, 33)
    # megatron-core gives a bias beside a frozen weight no gradient.
    bias = torch.randn(70, requires_grad=original is LINEAR) if biased else None
    weight.requires_grad_(original is LINEAR)
    wanted = [one for one in (x, weight, bias) if one is not None and one.requires_grad]
    plain = getattr(original, "__wrapped__", original)
    results = []
    for multiply in (fusions.linear(plain), plain):
        out = multiply(x, weight, bias, gradient_accumulation_fusion=False, allreduce_dgrad=False,
                       sequence_parallel=False, tp_group=None)  # fmt: skip
        results.append((out, *torch.autograd.grad(out.square().sum(), wanted)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_what_a_linear_kernel_cannot_do_stays_megatrons(monkeypatch):
    monkeypatch.setattr(fusions, "_fused", lambda op, device, dtype: pytest.fail)
    seen = []

    def linear_with_frozen_weight(input, weight, bias, gradient_accumulation_fusion,
                                  allreduce_dgrad, sequence_parallel,
                                  grad_output_buffer=None):  # fmt: skip
        seen.append(sequence_parallel)
        return input

    multiply = fusions.linear(linear_with_frozen_weight)
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    multiply(x, weight, None, False, False, True)
    multiply(x, weight, None, True, False, False)
    multiply(x, weight, None, False, False, False, grad_output_buffer=[])
    multiply(x, weight.double(), None, False, False, False)
    assert seen == [True, False, False, False]
