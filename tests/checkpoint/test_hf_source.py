"""Hugging Face weights as global tensors: every file and name is checked before one is read."""

import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf
from mindspeed_llm.checkpoint.hf_source import (
    WEIGHTS,
    HFSource,
    HFWeights,
    global_name,
    global_shape,
)
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.names import NameRule, to_mcore
from mindspeed_llm.models.registry import FAMILIES

EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def model_dir(tmp_path, tiny_hf_model):
    return tiny_hf_model("llama", tmp_path / "hf", tie_word_embeddings=True)


def composed(weights, rule):
    """What the name table makes of whole tensors."""
    parts = [weights.read_box(n, (0,) * len(s), s) for n in rule.hf
             for s in [weights._where[n][1].shape]]  # fmt: skip
    return to_mcore(rule, weights.model, parts)


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("name", "options", "expected"), [
    ("embedding.word_embeddings.weight", {}, ("embedding.word_embeddings.weight", ())),
    ("decoder.final_layernorm.weight", {}, ("decoder.final_layernorm.weight", ())),
    ("decoder.layers.13.mlp.linear_fc2.weight", {},
     ("decoder.layers.mlp.linear_fc2.weight", (13,))),
    ("decoder.layers.0.input_layernorm.weight", {"fused": True},
     ("decoder.layers.self_attention.linear_qkv.layer_norm_weight", (0,))),
    ("decoder.layers.2.pre_mlp_layernorm.weight", {},
     ("decoder.layers.pre_mlp_layernorm.weight", (2,))),
    ("decoder.layers.2.mlp.experts.local_experts.7.linear_fc2.weight", {"experts": 8},
     ("decoder.layers.mlp.experts.experts.linear_fc2.weight", (2, 7))),
    ("decoder.layers.2.mlp.experts.local_experts.7.linear_fc2.weight",
     {"experts": 8, "stacked": False},
     ("decoder.layers.2.mlp.experts.experts.linear_fc2.weight", (7,))),
    ("decoder.layers.2.mlp.router.weight", {"stacked": False},
     ("decoder.layers.2.mlp.router.weight", ())),
])  # fmt: skip
def test_global_names(name, options, expected):
    assert global_name(NameRule(mcore=name, hf=("x",), **options)) == expected


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_boxes_equal_the_composed_tensors(tmp_path, tiny_hf_model, family):
    """Any box read through the source is the slice of what the name table composes."""
    source = HFSource(tiny_hf_model(family, tmp_path / family))
    weights = source.weights
    for rule in weights.rules:
        key, lead = global_name(rule)
        whole = composed(weights, rule)
        assert source.tensors[key].shape == global_shape(rule, weights.model)
        rows = whole.shape[0]
        start, count = rows // 4, max(rows // 2, 1)
        shape = (count, *whole.shape[1:])
        out = torch.empty(*(1 for _ in lead), *shape)
        offset = (*lead, start, *(0 for _ in shape[1:]))
        source.read(key, offset, out)
        assert torch.equal(out.reshape(shape), whole[start : start + count]), rule.mcore
    source.weights.close()


def test_rows_behind_the_vocabulary_are_left_alone(model_dir):
    source = HFSource(model_dir)
    key = "embedding.word_embeddings.weight"
    out = torch.full((10, 64), 7.0)
    source.read(key, (125, 0), out)
    assert torch.equal(out[:6], load_file(model_dir / "model.safetensors")[EMBEDDING][125:])
    assert (out[6:] == 7).all()
    source.read(key, (140, 0), out)
    assert (out[6:] == 7).all()


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.pop(QUERY), rf"missing \(1\): {QUERY}"),
    (lambda t: t.update(extra=torch.zeros(2)), r"unknown for this family \(1\): extra"),
    (lambda t: t.update({QUERY: t[QUERY].t().contiguous()}), rf"wrong \(1\): {QUERY}.*expected"),
    (lambda t: t.update({QUERY: t[QUERY].to(torch.int8)}), "int8"),
    (lambda t: t.update({QUERY: t[QUERY].double()}), "float64"),
    (lambda t: t.update({QUERY: t[QUERY].bfloat16()}), "one dtype"),
    (lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}), "tie_word_embeddings"),
    (lambda t: t.update({"lm_head.weight": t[EMBEDDING][:9].clone()}), "tie_word_embeddings"),
    (lambda t: [t.pop(name) for name in list(t) if name != EMBEDDING], "and .. more"),
])  # fmt: skip
def test_weights_that_do_not_fit(model_dir, change, words):
    rewrite(model_dir, change)
    with pytest.raises(CheckpointError, match=words):
        HFSource(model_dir)


def test_redundant_tensors_are_skipped_and_named(model_dir):
    derived = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(model_dir, lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone(),
                                           derived: torch.zeros(12)}))  # fmt: skip
    weights = HFWeights(model_dir)
    weights.check_tied_head()
    assert sorted(weights.skipped) == ["lm_head.weight", derived]
    total = sum(math.prod(e.shape) * 4 for n, (_, e) in weights._where.items()
                if n not in weights.skipped)  # fmt: skip
    assert weights.nbytes() == total


def split(directory, names=None):
    """Two files and an index, as save_pretrained writes large models."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    return weight_map


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_several_files(model_dir):
    whole = HFWeights(model_dir)
    expected = [composed(whole, rule) for rule in whole.rules]
    write_index(model_dir, split(model_dir))
    weights = HFWeights(model_dir)
    for rule, tensor in zip(weights.rules, expected, strict=True):
        assert torch.equal(composed(weights, rule), tensor)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors",
                                  "..", "", "pytorch_model.bin", 3, None])  # fmt: skip
def test_index_that_leads_elsewhere(model_dir, file):
    weight_map = split(model_dir)
    save_file({EMBEDDING: torch.zeros(131, 64)}, model_dir.parent / "outside.safetensors")
    write_index(model_dir, weight_map | {EMBEDDING: file})
    with pytest.raises(CheckpointError, match="index.json"):
        HFWeights(model_dir)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{}",
                                  "[" * 100_000])  # fmt: skip
def test_malformed_index(model_dir, text):
    split(model_dir)
    (model_dir / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index.json"):
        HFWeights(model_dir)


def test_index_that_disagrees_with_its_files(model_dir):
    weight_map = split(model_dir)
    write_index(model_dir, {n: f for n, f in weight_map.items() if n != QUERY})
    with pytest.raises(CheckpointError, match=f"disagree on {QUERY}"):
        HFWeights(model_dir)
    write_index(model_dir, weight_map | {"ghost": weight_map[QUERY]})
    with pytest.raises(CheckpointError, match="disagree on ghost"):
        HFWeights(model_dir)
    write_index(model_dir, weight_map | {"ghost": "none.safetensors"})
    with pytest.raises(CheckpointError, match="none.safetensors"):
        HFWeights(model_dir)


def test_tensor_in_two_files(model_dir):
    weight_map = split(model_dir)
    other = next(f for f in weight_map.values() if f != weight_map[EMBEDDING])
    tensors = load_file(model_dir / other) | {EMBEDDING: torch.zeros(131, 64)}
    save_file(tensors, model_dir / other)
    write_index(model_dir, weight_map)
    with pytest.raises(CheckpointError):
        HFWeights(model_dir)


def test_files_without_index_and_no_weights_at_all(model_dir):
    split(model_dir)
    with pytest.raises(CheckpointError, match="2 safetensors files, but no"):
        HFWeights(model_dir)
    for path in model_dir.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        HFWeights(model_dir)
    (model_dir / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        HFWeights(model_dir)


@pytest.fixture
def multimodal(tmp_path):
    """A tiny Gemma 3 with a vision tower, as transformers saves it."""
    text = {"vocab_size": 131, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 20}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision,
                                       mm_tokens_per_image=4, eos_token_id=[1, 106])  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"


@pytest.mark.parametrize("prefix", [None, "model.language_model."])
def test_the_language_model_of_a_multimodal_directory(tmp_path, multimodal, prefix):
    whole, directory = multimodal
    assert any(n.startswith("language_model.model.") for n in load_file(directory / WEIGHTS))
    if prefix is not None:  # as files of other versions have it

        def rename(tensors):
            for name in [n for n in tensors if n.startswith("language_model.model.")]:
                tensors[name.replace("language_model.model.", prefix, 1)] = tensors.pop(name)

        rewrite(directory, rename)
    done = hf_to_mcore(directory, tmp_path / "mcore")
    assert done.skipped and all("language_model" not in name for name in done.skipped)
    exported = mcore_to_hf(tmp_path / "mcore", tmp_path / "back").path
    text = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    assert type(text).__name__ == "Gemma3ForCausalLM"
    assert text.config.eos_token_id == [1, 106]
    ids = torch.randint(3, 131, (2, 24), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = whole(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits
        assert (text(ids).logits - wanted).abs().max() < 1e-5
    assert HFSource(directory).weights.model == HFSource(exported).weights.model
