"""Our kernels where megatron-core has no seam: rotation and the norm of gradients."""

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_l2_norm

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
