"""models.registry: the list of families, and the way from a directory to an architecture."""

import json

import pytest

from mindspeed_llm.errors import ModelError
from mindspeed_llm.models.registry import FAMILIES, read_model, rules_of


def test_families_are_known_by_their_name_and_types_are_unique():
    assert all(family.name == name for name, family in FAMILIES.items())
    types = [kind for family in FAMILIES.values() for kind in family.hf_model_types]
    assert len(types) == len(set(types)) >= 3


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_reads_what_transformers_writes(name, tiny_hf_model, tmp_path):
    """Every family needs its row in `tiny_hf_model`, and with it the parity tests of test_build."""
    model = read_model(tiny_hf_model(name, tmp_path))
    assert model.family == name
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (4, 64, 131)
    assert model.dtype == "float32"
    assert rules_of(model) == FAMILIES[name].rules(model)


def test_unknown_families_are_errors_that_list_the_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ModelError, match="model_type is 'mamba'; known are .*gemma2.*llama"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="model_type is None"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize(("key", "value"), [
    ("auto_map", {"AutoModelForCausalLM": "modeling.Model"}),
    ("quantization_config", {"quant_method": "fp8"}),
    ("partial_rotary_factor", 0.5),
    ("attention_dropout", 0.1),
    ("num_experts", 8),
    ("hidden_size", "64"),
    ("num_hidden_layers", 0),
])  # fmt: skip
def test_what_would_change_the_numbers_is_named(name, key, value, tiny_hf_model, tmp_path):
    path = tiny_hf_model(name, tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelError) as caught:
        read_model(tmp_path)
    assert str(path) in str(caught.value)
    assert f"{key} is {value!r}" in str(caught.value)
