"""What a path names: base weights, a LoRA checkpoint that says where its base is, or both apart."""

import pytest
import torch

from mindspeed_llm.checkpoint.adapter import weights_sha256
from mindspeed_llm.checkpoint.convert import hf_to_mcore
from mindspeed_llm.checkpoint.peft import write_peft
from mindspeed_llm.checkpoint.weights import (
    Place,
    identify,
    locate,
    open_base,
    open_weights,
    read_adapter,
    shape_of_adapter,
)
from mindspeed_llm.config.tuning import LoraConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.registry import read_model


@pytest.fixture
def places(tmp_path, tiny_hf_model):
    """A Hugging Face model, the checkpoint made of it, and a PEFT adapter for it."""
    from mindspeed_llm.checkpoint.adapter import Adapter

    source = tiny_hf_model("llama", tmp_path / "hf")
    hf_to_mcore(source, tmp_path / "mcore")
    model = read_model(source)
    factors = {("linear_fc2", i): (torch.ones(2, 96), torch.full((64, 2), 0.5)) for i in range(4)}
    config = LoraConfig(rank=2, alpha=1.0, dropout=0.0, targets=("linear_fc2",))
    adapter = Adapter(config=config, factors=factors)
    write_peft(adapter, model, tmp_path / "peft", base=None, overwrite=False)
    return tmp_path


def test_a_base_alone(places):
    for name in ("hf", "mcore"):
        place = locate(places / name)
        assert place == Place(base=places / name)
        source, vocab_size = open_weights(place)
        assert vocab_size == 131
        digest = weights_sha256(source, vocab_size)
        assert identify(place, *open_base(places / "hf")).sha256 == digest


def test_base_and_adapter(places):
    key = "decoder.layers.mlp.linear_fc2.weight"
    plain, _ = open_weights(locate(places / "hf"))
    for name in ("hf", "mcore"):
        place = locate(places / name, places / "peft")
        assert shape_of_adapter(place) == read_adapter(place).config
        source, _ = open_weights(place)
        before, after = torch.empty(1, 64, 96), torch.empty(1, 64, 96)
        plain.read(key, (2, 0, 0), before)
        source.read(key, (2, 0, 0), after)
        torch.testing.assert_close(after, before + 0.5)


def test_the_manifest_spares_hashing_and_the_iteration_is_kept(places, monkeypatch):
    base = identify(Place(base=places / "mcore"), *open_base(places / "mcore"))
    assert base.path == places / "mcore/release" and list(base.files) == [
        "model-r00000-000.safetensors"
    ]
    monkeypatch.setattr("mindspeed_llm.checkpoint.weights.weights_sha256", lambda *_: "other")
    place = Place(base=places / "mcore", adapter=places / "peft")
    assert identify(place, *open_base(place.base), base) == base
    with pytest.raises(CheckpointError, match="not the weights that the adapter"):
        identify(Place(base=places / "hf", adapter=place.adapter), *open_base(places / "hf"), base)


def test_what_is_no_adapter_or_no_base_is_said(places):
    with pytest.raises(CheckpointError, match="without the weights it belongs to; .*--lora-load"):
        locate(places / "peft")
    for wrong in ("hf", "mcore", "nothing"):
        with pytest.raises(CheckpointError, match="no adapter; expected"):
            locate(places / "hf", places / wrong)
