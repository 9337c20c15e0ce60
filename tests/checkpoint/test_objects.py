"""Plain state survives JSON exactly; anything that would need a pickle is refused."""

import json
import math
from argparse import Namespace

import pytest
import torch

from mindspeed_llm.checkpoint.objects import pack, unpack
from mindspeed_llm.errors import CheckpointError


def through_json(value):
    kept = {}

    def keep(tensor):
        kept[f"t{len(kept)}"] = tensor
        return f"t{len(kept) - 1}"

    return unpack(json.loads(json.dumps(pack(value, keep), allow_nan=False)), kept.__getitem__)


@pytest.mark.parametrize("value", [
    None, True, 0, -(2**70), 0.1, 1e-320, "", "\U0001f337 \u0000", [], {}, (), [1, [2, (3, [4])]],
    {"betas": (0.9, 0.95), "params": [0, 1]}, {0: {1: "a"}, "0": 2}, {(1, 2): None, None: 3},
    {"__kind__": "tensor", "value": "t0"}, torch.bfloat16, math.inf, -math.inf,
])  # fmt: skip
def test_exactly_the_same(value):
    result = through_json(value)
    assert result == value and type(result) is type(value)
    if isinstance(value, dict):
        assert list(map(type, result)) == list(map(type, value))


def test_bool_is_not_an_integer():
    assert through_json([True, 1, 1.0]) == [True, 1, 1.0]
    assert [type(v) for v in through_json([True, 1, 1.0])] == [bool, int, float]


def test_nan_and_tensors():
    result = through_json({"a": math.nan, "b": torch.arange(3), "c": [torch.tensor(2.5)]})
    assert math.isnan(result["a"])
    assert torch.equal(result["b"], torch.arange(3)) and result["c"][0].item() == 2.5


@pytest.mark.parametrize(
    "value", [Namespace(a=1), object(), print, {1, 2}, b"bytes", 1j, Exception]
)
def test_other_objects_are_refused_by_their_path(value):
    with pytest.raises(CheckpointError, match=r"state\.args\[1\]"):
        pack({"args": [0, value]}, lambda tensor: "t", "state")


@pytest.mark.parametrize("data", [
    {"__kind__": "float", "value": "1e5"}, {"__kind__": "object", "value": "os.system"},
    {"__kind__": "tuple", "value": 3}, {"__kind__": "dtype", "value": "nn"}, {"__kind__": None},
])  # fmt: skip
def test_malformed_data_is_a_clean_error(data):
    with pytest.raises(CheckpointError, match="malformed"):
        unpack(data, lambda name: torch.zeros(1))
