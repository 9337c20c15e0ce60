"""models.family: name tables against the tensors that transformers really writes."""

import json
import struct

import pytest

from mindspeed_llm.models.names import expand, hf_shapes
from mindspeed_llm.models.registry import FAMILIES, read_model, rules_of
from mindspeed_llm.models.shapes import mcore_shape

VARIANTS = [
    (name, changes)
    for name in sorted(FAMILIES)
    for changes in ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False})
]
VARIANTS += [("llama", {"attention_bias": True}), ("llama", {"mlp_bias": True})]  # fmt: skip


def header(path):
    """{tensor: shape} of a safetensors file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(size))
    return {k: tuple(v["shape"]) for k, v in table.items() if k != "__metadata__"}


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_the_table_names_every_tensor_once_with_its_shape(name, changes, tiny_hf_model, tmp_path):
    model = read_model(tiny_hf_model(name, tmp_path, **changes))
    found = {}
    for rule in expand(rules_of(model), model.num_layers):
        shapes = hf_shapes(rule, model, mcore_shape(rule, model))
        found |= dict(zip(rule.hf, shapes, strict=True))
    assert found == header(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_only_vocabulary_tensors_are_marked_so(name, tiny_hf_model, tmp_path):
    model = read_model(tiny_hf_model(name, tmp_path, tie_word_embeddings=False))
    marked = {rule.mcore for rule in rules_of(model) if rule.vocab}
    assert marked == {"embedding.word_embeddings.weight", "output_layer.weight"}
