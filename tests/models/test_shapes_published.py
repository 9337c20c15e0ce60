"""models.shapes on the geometries of published models: their parameter counts, which transformers'
and our own models on the meta device must have too. No weight is allocated."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from mindspeed_llm.models.registry import FAMILIES, read_model
from mindspeed_llm.models.shapes import count_parameters

# What the published config.json files say of the architecture, and the published counts.
PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def write(directory, name, layers=None):
    """Its config.json; with `layers`, of as many layers."""
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(PUBLISHED[name]["config"])
    if layers is not None:
        config["num_hidden_layers"] = layers
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:layers]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_equal_transformers(name, tmp_path):
    directory = write(tmp_path, name)
    config = transformers.AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    counted = count_parameters(read_model(directory))
    assert counted == theirs.num_parameters() == PUBLISHED[name]["parameters"]
    model = read_model(directory)
    attention = theirs.model.layers[0].self_attn
    scale = model.head_dim**-0.5 if model.attention_scale is None else model.attention_scale
    assert attention.scaling == pytest.approx(scale, rel=1e-12)
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in theirs.model.layers]
    if model.family not in (
        "mistral",
        "mixtral",
        "phi3",
    ):  # there the mask, not the layer, has the window
        ours = [model.sliding_window if model.is_sliding(i) else None for i in range(len(windows))]
        assert windows == ours


def build_all(directories):
    """What each model built on the meta device has."""
    import pickle
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    found = {}
    for name, directory in directories.items():
        model = read_model(Path(directory))
        with torch.device("meta"):
            gpt = build_model(model, ParallelConfig(), dtype=torch.bfloat16)
        found[name] = [
            sum(parameter.numel() for parameter in gpt.parameters()),
            sorted({f"{p.device.type} {p.dtype}" for p in gpt.parameters()}),
            pickle.loads(pickle.dumps(gpt.config)).decoder == model,
            "decoder.layers.1.mlp.linear_fc2.post_layernorm.weight" in gpt.sharded_state_dict(),
        ]
    return found


@pytest.mark.parametrize("layers", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_our_models_have_as_many(layers, run_ranks, tmp_path):
    """Of two layers, and whole; they are like each other, or alternate."""
    directories = {name: write(tmp_path / name.replace(" ", "_"), name, layers)
                   for name in PUBLISHED}  # fmt: skip
    places = {name: str(directory) for name, directory in directories.items()}
    (found,) = run_ranks(1, build_all, places, timeout=600)
    for name, directory in directories.items():
        model = read_model(directory)
        assert found[name] == [count_parameters(model), ["meta torch.bfloat16"], True,
                               model.post_norms], name  # fmt: skip


def test_every_family_has_a_published_geometry():
    types = {row["config"]["model_type"] for row in PUBLISHED.values()}
    known = {kind for family in FAMILIES.values() for kind in family.hf_model_types}
    assert types == known - {"gemma3"}  # the text model, gemma3_text, inside one that also sees
