"""Weights between two others, box by box."""

import pytest
import torch

from mindspeed_llm.checkpoint.blend import BlendedSource
from mindspeed_llm.checkpoint.store import Stored


class Held:
    """A source of one tensor that is in memory."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.tensors = {"w": Stored("model", tuple(tensor.shape), tensor.dtype)}

    def read(self, key, offset, out):
        assert key == "w"
        box = tuple(slice(o, o + n) for o, n in zip(offset, out.shape, strict=True))
        out.copy_(self.tensor[box])


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("box", [((0, 0), (4, 6)), ((1, 2), (2, 3))])
def test_a_box_lies_on_the_line_between_the_two(share, box):
    torch.manual_seed(0)
    first, last = torch.randn(4, 6), torch.randn(4, 6)
    out = torch.empty(box[1])
    BlendedSource(Held(first), Held(last), share).read("w", box[0], out)
    (row, column), (rows, columns) = box
    expected = (1 - share) * first.double() + share * last.double()
    expected = expected[row : row + rows, column : column + columns]
    assert torch.allclose(out.double(), expected, rtol=0, atol=1e-6)


def test_half_precision_is_rounded_once():
    """A step that bfloat16 cannot hold by itself counts: the sum is made in float32."""
    first = torch.full((2, 2), 1.0, dtype=torch.bfloat16)
    last = torch.full((2, 2), 1.0 + 2**-7, dtype=torch.bfloat16)
    source = BlendedSource(Held(first), Held(last), 0.75)
    assert source.tensors["w"].dtype is torch.bfloat16
    exact, rounded = torch.empty(2, 2), torch.empty(2, 2, dtype=torch.bfloat16)
    source.read("w", (0, 0), exact)
    source.read("w", (0, 0), rounded)
    assert torch.equal(exact, torch.full((2, 2), 1.0 + 0.75 * 2**-7))
    assert torch.equal(rounded, exact.to(torch.bfloat16))
