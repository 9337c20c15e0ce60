"""inference.compare: a good export passes, one wrong tensor or tokenizer does not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


def compared(pairs):
    """[difference, largest] or the error of each (checkpoint, export)."""
    from pathlib import Path

    from mindspeed_llm.errors import UserError
    from mindspeed_llm.inference.compare import compare

    out = []
    for checkpoint, exported in pairs:
        try:
            done = compare(Path(checkpoint), Path(exported))
            out.append([done.difference, done.largest, done.limit])
        except UserError as err:
            out.append(str(err))
    return out


def changed(source, target, change=None, config=None):
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    if change:
        change(tensors)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    if config:
        values = json.loads((target / "config.json").read_text()) | config
        (target / "config.json").write_text(json.dumps(values))
    return target


def swap(tensors):
    """Two layers change places; names and shapes stay."""
    a, b = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    tensors[a], tensors[b] = tensors[b], tensors[a]


def nudge(tensors):
    tensors["model.layers.2.self_attn.o_proj.weight"][0, 0] += 0.1


def half(tensors):
    for name in tensors:
        tensors[name] = tensors[name].to(torch.bfloat16)


@pytest.fixture(scope="module")
def model(tiny_chat_model):
    return tiny_chat_model("llama")


def test_compare(model, run_ranks, tmp_path):
    other = changed(model, tmp_path / "other")
    spec = json.loads((other / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    none = changed(model, tmp_path / "none")
    (none / "model.safetensors").write_bytes(b"")
    exports = [
        model,
        changed(model, tmp_path / "bf16", half, {"dtype": "bfloat16"}),
        changed(model, tmp_path / "swapped", swap),
        changed(model, tmp_path / "nudged", nudge),
        other,
        none,
    ]
    (answers,) = run_ranks(1, compared, [[str(model), str(export)] for export in exports])
    same, rounded, swapped, nudged, tokenizer, empty = answers
    assert same[0] < 1e-5 < same[1] and rounded[0] < rounded[2]
    assert "computes other logits than the checkpoint" in swapped
    assert "computes other logits" in nudged
    assert "its tokenizer is not the checkpoint's" in tokenizer
    assert "transformers cannot open it" in empty
