"""Hugging Face weights in .bin files: only when asked for, and only what torch calls safe."""

import io
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf
from mindspeed_llm.checkpoint.pickled import PickledFile, load
from mindspeed_llm.errors import CheckpointError


@pytest.fixture
def llama(tmp_path, tiny_hf_model):
    return tiny_hf_model("llama", tmp_path / "hf", tie_word_embeddings=True)


def as_bin(directory, files=1, *, tied=True, name="pytorch_model.bin"):
    """The same weights as `save_pretrained(safe_serialization=False)` wrote them; `tied`: the
    output layer shares the embedding's storage, as it did there."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if files == 1:
        torch.save(tensors, directory / name)
        return tensors
    weight_map = {}
    for number in range(files):
        file = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        part = sorted(tensors)[number::files]
        torch.save({n: tensors[n] for n in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


@pytest.mark.parametrize(("files", "name"), [(1, "pytorch_model.bin"), (3, ""), (1, "model.pt")])
def test_same_result_as_from_safetensors(tmp_path, llama, files, name):
    expected = load_file(llama / "model.safetensors")
    as_bin(llama, files, name=name)
    with pytest.raises(CheckpointError, match="--trust-pickle"):
        hf_to_mcore(llama, tmp_path / "mcore")
    assert not (tmp_path / "mcore").exists()
    done = hf_to_mcore(llama, tmp_path / "mcore", trust_pickle=True)
    assert done.skipped == ("lm_head.weight",)
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    result = load_file(tmp_path / "back" / "model.safetensors")
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[n], expected[n]) for n in expected)


def test_safetensors_win(tmp_path, llama):
    """A pickle beside them is not touched, whatever was said."""
    (llama / "pytorch_model.bin").write_bytes(b"anything")
    hf_to_mcore(llama, tmp_path / "mcore", trust_pickle=True)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["bare", "saved", "inside"])
def test_pickles_that_would_run_code(tmp_path, llama, form):
    tensors, bomb = as_bin(llama), Bomb(tmp_path / "exploded")
    path = llama / "pytorch_model.bin"
    if form == "bare":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb if form == "saved" else tensors | {"extra": bomb}, path)
    with pytest.raises(CheckpointError, match="weights_only loader does not read it") as error:
        hf_to_mcore(llama, tmp_path / "mcore", trust_pickle=True)
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "mcore").exists()
    said = str(error.value)  # what it met, and none of torch's advice to run the code
    assert "False" not in said and "add_safe" not in said and "posix" not in said


def test_a_blocked_module_is_named(tmp_path):
    class Shell:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    torch.save({"x": Shell()}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=r"read it \(Trying to load .*posix.system") as error:
        PickledFile(tmp_path / "a.bin")
    assert "False" not in str(error.value) and not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("content", "words"), [
    ([torch.zeros(2)], "holds a list"),
    ({"a": 3}, "a is no plain tensor"),
    ({"a": torch.zeros(2).to_sparse()}, "a is no plain tensor"),
    (b"cut short", "does not read it"),
])  # fmt: skip
def test_no_table_of_tensors(tmp_path, content, words):
    path = tmp_path / "pytorch_model.bin"
    if isinstance(content, bytes):
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:500])
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=words):
        PickledFile(path)


def test_hostile_index(tmp_path, llama):
    as_bin(llama, 2)
    index = llama / "pytorch_model.bin.index.json"
    table = json.loads(index.read_text())["weight_map"]
    for file in ("../x.bin", "/etc/passwd", "a/b.bin", "model.safetensors", 3):
        index.write_text(json.dumps({"weight_map": table | {"model.norm.weight": file}}))
        with pytest.raises(CheckpointError, match="index.json"):
            hf_to_mcore(llama, tmp_path / "mcore", trust_pickle=True)


def test_boxes_and_views(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    torch.save({"t": whole.t(), "part": whole[1:3]}, tmp_path / "x.bin")
    file = PickledFile(tmp_path / "x.bin")
    assert torch.equal(file.read_box("t", (1, 2), (3, 2)), whole.t()[1:4, 2:4])
    out = torch.empty(1, 6)
    assert torch.equal(file.read_box("part", (1, 0), (1, 6), out), whole[2:3])
    file.close()
    file.close()


def test_a_torch_whose_loader_runs_code(tmp_path, llama, monkeypatch):
    as_bin(llama)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(CheckpointError, match="CVE-2025-32434"):
        hf_to_mcore(llama, tmp_path / "mcore", trust_pickle=True)


def test_streams(tmp_path):
    stream = io.BytesIO()
    torch.save(torch.ones(3), stream)
    stream.seek(0)
    assert torch.equal(load(stream, tmp_path), torch.ones(3))
