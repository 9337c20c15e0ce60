"""Holds that a GGUF file becomes a Hugging Face directory with the values the file stands for."""

import json

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from mindspeed_llm.checkpoint import gguf as unpacking
from mindspeed_llm.errors import ConfigError, ModelError
from mindspeed_llm.models.registry import read_model

WIDTH, HEADS, GROUPS, LAYERS, MLP = 64, 4, 2, 2, 96
TOKENS = ["<|end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab"]


def rotate_rows(weight, heads):
    """llama.cpp's row order: the halves of a head interleaved (written independently)."""
    size = weight.shape[0] // heads
    order = [head * size + half * (size // 2) + i
             for head in range(heads) for i in range(size // 2) for half in (0, 1)]  # fmt: skip
    return weight[order]


def write_gguf(path, model, *, kind="F32", architecture="llama", extra=()):
    """A GGUF file of a transformers Llama, as llama.cpp's converter lays it out."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    for key, value in extra:
        writer.add_string(key, value)
    names = {hf: own for own, hf in unpacking._LAYER.items()}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        weight = tensor.numpy()
        if parts[1] == "layers":
            own = names[".".join(parts[3:-1])]
            if own in ("attn_q", "attn_k"):
                weight = rotate_rows(weight, HEADS if own == "attn_q" else GROUPS)
            name = f"blk.{parts[2]}.{own}.weight"
        else:
            whole = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm",
                     "lm_head.weight": "output"}  # fmt: skip
            name = f"{whole[name]}.weight"
        quantised = gguf.GGMLQuantizationType[kind] if weight.ndim == 2 else None
        if quantised is None or kind == "F32":
            writer.add_tensor(name, np.ascontiguousarray(weight))
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(weight), quantised)
            writer.add_tensor(name, data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS, vocab_size=len(TOKENS),
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, tie_word_embeddings=False,
        max_position_embeddings=256, rope_theta=5000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def test_weights_come_back_to_the_bit_and_the_model_speaks_the_same(llama, tmp_path):
    target = tmp_path / "new" / "hf"
    nbytes = unpacking.unpack(write_gguf(tmp_path / "m.gguf", llama), target)
    state = load_file(target / "model.safetensors")
    assert state.keys() == llama.state_dict().keys()
    for name, tensor in llama.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert nbytes == sum(tensor.nbytes for tensor in state.values())
    other = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    ids = torch.arange(20)[None] % len(TOKENS)
    with torch.no_grad():
        assert torch.equal(other(ids).logits, llama(ids).logits)


def test_the_directory_is_one_that_this_library_reads(llama, tmp_path):
    unpacking.unpack(write_gguf(tmp_path / "m.gguf", llama), tmp_path / "hf")
    model = read_model(tmp_path / "hf")
    assert (model.family, model.rope.theta, model.norm_epsilon) == ("llama", 5000.0, 1e-5)
    assert (model.num_query_groups, model.tie_word_embeddings) == (GROUPS, False)
    assert model.eos_token_ids == (0,)
    files = {path.name for path in (tmp_path / "hf").iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors",
                     "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    assert json.loads((tmp_path / "hf/generation_config.json").read_text())["eos_token_id"] == 0


def test_quantised_weights_are_what_the_file_stands_for(llama, tmp_path):
    unpacking.unpack(write_gguf(tmp_path / "m.gguf", llama, kind="Q8_0"), tmp_path / "hf")
    state = load_file(tmp_path / "hf" / "model.safetensors")
    for name, tensor in llama.state_dict().items():
        # Q8_0 rounds to a 127th of the largest of 32 neighbours, which it keeps in fp16.
        error = (state[name] - tensor).abs().max() / tensor.abs().max()
        assert error <= 0.5 / 127 + 2**-11, name
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(state[name], llama.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "gemma2"}, "architecture 'gemma2'"),
        ({"extra": [("llama.rope.scaling.type", "yarn")]}, "scaled rotary"),
    ],
)
def test_other_models_are_refused_and_nothing_is_left(llama, tmp_path, changes, said):
    source = write_gguf(tmp_path / "m.gguf", llama, **changes)
    with pytest.raises(ModelError, match=said):
        unpacking.unpack(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_damaged_tensor_leaves_nothing(llama, tmp_path, monkeypatch):
    source = write_gguf(tmp_path / "m.gguf", llama)
    monkeypatch.setattr(unpacking, "unrotate", lambda weight, heads: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        unpacking.unpack(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_wrong_places_are_named(tmp_path):
    with pytest.raises(ConfigError, match="--input .*: no such file"):
        unpacking.unpack(tmp_path / "none.gguf", tmp_path / "hf")
    (tmp_path / "text.gguf").write_text("not a model, and long enough to have a header" * 9)
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        unpacking.unpack(tmp_path / "text.gguf", tmp_path / "hf")
    (tmp_path / "hf").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        unpacking.unpack(tmp_path / "text.gguf", tmp_path / "hf")


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.x.attn_q.weight", "rope_freqs.weight"])
def test_unknown_tensors_are_errors(name):
    with pytest.raises(ModelError, match="not one of the Llama family"):
        unpacking.hf_name(name)


def test_unrotate_is_the_inverse_of_llama_cpps_order():
    weight = torch.arange(24.0).reshape(12, 2)
    rotated = torch.tensor(rotate_rows(weight.numpy(), 2))
    assert not torch.equal(rotated, weight)
    assert torch.equal(unpacking.unrotate(rotated, 2), weight)
