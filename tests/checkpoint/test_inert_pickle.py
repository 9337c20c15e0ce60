"""Pickles become plain records; whatever they name is neither imported nor called."""

import collections
import pickle
import sys

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from mindspeed_llm.checkpoint.inert_pickle import Made, Name, read
from mindspeed_llm.errors import CheckpointError

PLAIN = {"a": [1, -2, 2**40, 2**80, 1.5, None, True, False], "b": ("x", b"y", ("z",) * 4, ()),
         "c": [{}, [], {"d": {1: 2}}, "ä" * 300, b"z" * 300, {3, 4}]}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_of_every_protocol(protocol):
    value = {k: v for k, v in PLAIN.items() if protocol > 3 or k == "a"}
    assert read(pickle.dumps(value, protocol), "here") == value


def test_shared_objects_stay_shared():
    part = ["x"]
    value = read(pickle.dumps([part, part]), "here")
    assert value[0] is value[1]


def test_objects_become_records():
    size = read(pickle.dumps(torch.Size((2, 3))), "here")
    assert isinstance(size, Made) and size.what == Name("torch", "Size") and size.args == ((2, 3),)
    index = read(pickle.dumps(MetadataIndex("weight", (1, 2))), "here")
    assert index.what.name == "MetadataIndex" and index.state["fqn"] == "weight"
    assert read(pickle.dumps(torch.float32), "here") == Name("torch", "float32")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_called_or_imported(tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    found = read(bomb, "here")
    assert found.what.name == "open" and not (tmp_path / "exploded").exists()
    read(b"cantigravity\nfly\n.", "here")
    assert "antigravity" not in sys.modules
    pickle.loads(bomb).close()
    assert (tmp_path / "exploded").exists(), "the bomb would have worked"


@pytest.mark.parametrize("data", [
    b"", b"not a pickle", pickle.dumps([1, 2])[:-3], b"I1\nI2\n.", b"(.", b"0.", b"g9\n.",
    b"]K\x01R.", b"K\x01K\x02b.", b"}K\x01a.", b"(K\x01s.", b"\x80\x04(K\x01.",
    pickle.dumps(collections.OrderedDict(a=1)),  # items for what is no dictionary
    b"cos\nsystem\n(S'true'\ntR.", b"(S'x'\nios\nsystem\n.", b"Pid\n.",
    b"}]K\x01s.",  # a list as a key
])  # fmt: skip
def test_damaged_or_not_needed(data):
    with pytest.raises(CheckpointError, match="here: "):
        read(data, "here")


def test_too_large(monkeypatch):
    monkeypatch.setattr("mindspeed_llm.checkpoint.inert_pickle.LIMIT", 10)
    with pytest.raises(CheckpointError, match="too large"):
        read(b"x" * 11, "here")
