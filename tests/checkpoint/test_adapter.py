"""An adapter in memory adds to what is read; the hash of weights is that of their content."""

import pytest
import torch

from mindspeed_llm.checkpoint.adapter import (
    Adapter,
    Base,
    MergedSource,
    facts,
    is_lora_checkpoint,
    targets_in,
    weights_sha256,
)
from mindspeed_llm.checkpoint.convert import hf_to_mcore
from mindspeed_llm.checkpoint.directory import find_checkpoint
from mindspeed_llm.checkpoint.hf_source import HFSource
from mindspeed_llm.checkpoint.store import Stored
from mindspeed_llm.config.tuning import LoraConfig
from mindspeed_llm.errors import CheckpointError

FC2 = "decoder.layers.mlp.linear_fc2.weight"


class Weights:
    """A source in memory."""

    def __init__(self, **tensors):
        self.whole = tensors
        self.tensors = {k: Stored("model", tuple(t.shape), t.dtype) for k, t in tensors.items()}

    def read(self, key, offset, out):
        out.copy_(self.whole[key][tuple(slice(o, o + n) for o, n in
                                        zip(offset, out.shape, strict=True))])  # fmt: skip


@pytest.fixture
def adapter():
    drawn = torch.Generator().manual_seed(0)
    config = LoraConfig(rank=2, alpha=3.0, dropout=0.0, targets=("linear_fc2",))
    factors = {
        ("linear_fc2", layer): (
            torch.randn(2, 5, generator=drawn),
            torch.randn(4, 2, generator=drawn),
        )
        for layer in range(3)
    }
    return Adapter(config=config, factors=factors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_box_is_read_with_its_share_added(adapter, dtype):
    norm = "decoder.layers.mlp.linear_fc1.layer_norm_weight"
    base = {FC2: torch.randn(3, 4, 5).to(dtype), norm: torch.randn(3, 5).to(dtype),
            "output_layer.weight": torch.randn(7, 5).to(dtype)}  # fmt: skip
    source = MergedSource(Weights(**base), adapter)
    delta = torch.stack([1.5 * b @ a for a, b in adapter.factors.values()])
    whole = base[FC2].float() + delta
    for offset, shape in (((0, 0, 0), (3, 4, 5)), ((1, 2, 1), (2, 1, 3)), ((2, 3, 4), (1, 1, 1))):
        box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
        out = torch.empty(shape, dtype=dtype)
        source.read(FC2, offset, out)
        torch.testing.assert_close(out, whole[box].to(dtype))
    for key in (norm, "output_layer.weight"):
        out = torch.empty_like(base[key])
        source.read(key, (0, 0), out)
        assert torch.equal(out, base[key])
    assert {s.dtype for s in source.tensors.values()} == {dtype}
    wide = MergedSource(Weights(**base), adapter, torch.float32)
    assert wide.tensors[FC2].dtype == torch.float32


def test_factors_fill_a_models_adapters(adapter):
    source = adapter.source(3)
    assert {key: stored.shape for key, stored in source.tensors.items()} == {
        "decoder.layers.mlp.linear_fc2.adapter.lora_a": (3, 2, 5),
        "decoder.layers.mlp.linear_fc2.adapter.lora_b": (3, 4, 2),
    }
    out = torch.empty(1, 2, 2)
    source.read("decoder.layers.mlp.linear_fc2.adapter.lora_b", (1, 2, 0), out)
    assert torch.equal(out[0], adapter.factors["linear_fc2", 1][1][2:])
    with pytest.raises(CheckpointError, match="every layer"):
        adapter.source(4)
    odd = dict(adapter.factors) | {("linear_fc2", 0): (torch.ones(4, 5), torch.ones(4, 4))}
    with pytest.raises(CheckpointError, match="one A of rank 2 for linear_fc2"):
        Adapter(config=adapter.config, factors=odd).source(3)


def test_the_hash_is_of_content(tmp_path, tiny_hf_model):
    directory = tiny_hf_model("gemma2", tmp_path / "hf")
    other = tiny_hf_model("gemma2", tmp_path / "other", seed=1)
    checkpoint = find_checkpoint(hf_to_mcore(directory, tmp_path / "mcore").path)
    sources = (HFSource(directory), checkpoint.reader(), HFSource(other))
    hashes = [weights_sha256(source, 131) for source in sources]
    assert hashes[0] == hashes[1] != hashes[2]
    assert not is_lora_checkpoint(directory) and not is_lora_checkpoint(tmp_path / "mcore")
    zeros = Weights(**{"output_layer.weight": torch.zeros(8, 3)})
    padded = Weights(**{"output_layer.weight": torch.zeros(9, 3)})
    longer = Weights(**{"output_layer.weight": torch.zeros(8, 3, dtype=torch.bfloat16)})
    assert weights_sha256(zeros, 7) == weights_sha256(padded, 7) != weights_sha256(longer, 7)


def test_facts_name_the_base_by_its_absolute_path(tmp_path, monkeypatch, adapter):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    said = facts(adapter.config, Base(path=Path("base"), sha256="ab"))
    base = said.pop("base")
    assert said == {"rank": 2, "alpha": 3.0, "dropout": 0.0, "targets": ["linear_fc2"]}
    assert base == {"path": str(tmp_path / "base"), "sha256": "ab", "files": {}}


def test_targets_are_the_linear_layers():
    names = ["decoder.layers.3.mlp.linear_fc1.weight", "decoder.layers.3.mlp.linear_fc1.bias",
             "decoder.layers.3.mlp.linear_fc2.post_layernorm.weight", "output_layer.weight",
             "decoder.layers.10.self_attention.linear_qkv.weight"]  # fmt: skip
    assert [found[1:] for found in targets_in(names)] == [("linear_fc1", 3), ("linear_qkv", 10)]
