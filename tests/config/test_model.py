"""config.model: what a ModelConfig refuses, and what it says of single layers."""

import dataclasses

import pytest

from mindspeed_llm.config.model import ExpertsConfig, ModelConfig, RopeConfig
from mindspeed_llm.errors import ModelError

FIELDS = {
    "family": "test", "num_layers": 4, "hidden_size": 8, "ffn_hidden_size": 16,
    "num_attention_heads": 4, "num_query_groups": 2, "head_dim": 2, "vocab_size": 11,
    "max_position_embeddings": 32, "norm_epsilon": 1e-6, "activation": "silu",
    "tie_word_embeddings": True, "rope": RopeConfig(theta=1e4),
}  # fmt: skip


def test_is_frozen_and_hashable():
    model = ModelConfig(**FIELDS)
    assert hash(model) == hash(ModelConfig(**FIELDS))
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.num_layers = 5


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", True, None])
@pytest.mark.parametrize("name", ["num_layers", "head_dim", "vocab_size"])
def test_sizes_are_integers_from_one(name, value):
    with pytest.raises(ModelError, match=f"test: {name} is .*expected an integer >= 1"):
        ModelConfig(**FIELDS | {name: value})


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_query_groups": 3}, "4 attention heads are not a multiple of 3"),
    ({"rotary_dim": 4}, "4 of a head's 2 dimensions turn"),
    ({"head_dim": 8, "rotary_dim": 3}, "3 of a head's 8 dimensions turn; expected an even"),
    ({"layer_types": ("full",) * 3}, "3 layer types for 4 layers"),
    ({"layer_types": ("sliding",) * 4}, "sliding layers without a sliding window"),
])  # fmt: skip
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        ModelConfig(**FIELDS | changes)


def test_layers_know_their_window_and_their_rope():
    local = RopeConfig(theta=100.0)
    types = ("sliding", "sliding", "full", "sliding")
    model = ModelConfig(**FIELDS, layer_types=types, sliding_window=8, rope_local=local)
    assert [model.is_sliding(i) for i in range(4)] == [True, True, False, True]
    assert [model.rope_of(i).theta for i in range(4)] == [100.0, 100.0, 1e4, 100.0]


def test_without_layer_types_all_layers_are_full():
    model = ModelConfig(**FIELDS, rope_local=RopeConfig(theta=100.0))
    assert not any(model.is_sliding(i) for i in range(4))
    assert {model.rope_of(i).theta for i in range(4)} == {1e4}


EXPERTS = {"num_experts": 4, "top_k": 2, "ffn_hidden_size": 8, "renormalized": True,
           "layers": (1, 3)}  # fmt: skip


def test_experts_of_some_layers():
    model = ModelConfig(**FIELDS, experts=ExpertsConfig(**EXPERTS))
    assert [model.is_sparse(i) for i in range(4)] == [False, True, False, True]
    assert model.is_mixed and not ModelConfig(**FIELDS).is_mixed
    whole = ModelConfig(**FIELDS, experts=ExpertsConfig(**EXPERTS | {"layers": (0, 1, 2, 3)}))
    assert not whole.is_mixed


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_experts": 0}, "num_experts is 0"),
    ({"top_k": 5}, "5 experts a token of 4"),
    ({"top_k": 1}, "one expert a token"),
    ({"layers": ()}, r"experts in layers \(\) of 4"),
    ({"layers": (3, 1)}, r"experts in layers \(3, 1\)"),
    ({"layers": (4,)}, r"experts in layers \(4,\) of 4"),
])  # fmt: skip
def test_experts_that_make_no_sense(changes, message):
    with pytest.raises(ModelError, match=message):
        ModelConfig(**FIELDS, experts=ExpertsConfig(**EXPERTS | changes))


def test_experts_have_no_biases():
    with pytest.raises(ModelError, match="experts with biases"):
        ModelConfig(**FIELDS, mlp_bias=True, experts=ExpertsConfig(**EXPERTS))
