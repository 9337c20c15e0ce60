"""Checkpoints in MindSpeed-LLM's older layout, constructed as its converter writes them."""

import argparse
import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf
from mindspeed_llm.checkpoint.directory import find_checkpoint, model_directory
from mindspeed_llm.checkpoint.hf_source import HFWeights
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.names import to_mcore

ROWS = ("linear_qkv.weight", "linear_qkv.bias")
COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
MINDSPEED = {"self_attention.linear_proj.post_layernorm": "post_attn_norm",
             "mlp.linear_fc2.post_layernorm": "post_mlp_layernorm"}  # fmt: skip
ENGINE = {"input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
          "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight"}  # fmt: skip


def cut(name, tensor, rank, tp):
    """One rank's part, as megatron-core splits a layer."""
    if name.endswith(ROWS):
        return tensor.chunk(tp)[rank]
    if name.endswith(COLUMNS):
        return tensor.chunk(tp, dim=1)[rank]
    if "linear_fc1" in name and "norm" not in name:
        gate, up = tensor.chunk(2)
        return torch.cat([gate.chunk(tp)[rank], up.chunk(tp)[rank]])
    if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        rows = -(-tensor.shape[0] // (4 * tp)) * 4 * tp  # padded, as the converter does
        padded = torch.zeros(rows, tensor.shape[1])
        padded[: tensor.shape[0]] = tensor
        return padded.chunk(tp)[rank]
    return tensor


def legacy(source, root, tp, pp, *, vpp=1, renamed=(), args=True):
    """Write `source` (Hugging Face) as root/iter_0000007/mp_rank_XX[_YYY]/model_optim_rng.pt."""
    weights = HFWeights(source)
    tensors = load_file(source / "model.safetensors")
    whole = {rule.mcore: to_mcore(rule, weights.model, [tensors[name] for name in rule.hf])
             for rule in weights.rules}  # fmt: skip
    model, each = weights.model, weights.model.num_layers // (pp * vpp)
    if model.tie_word_embeddings and pp > 1:
        whole["output_layer.weight"] = whole["embedding.word_embeddings.weight"]
    for rank in range(tp):
        for stage in range(pp):
            content = {"iteration": 7, "checkpoint_version": 3.0}
            if args:
                content["args"] = argparse.Namespace(lr=1e-4, exit_signal=signal.SIGTERM,
                                                     params_dtype=torch.bfloat16)  # fmt: skip
            for chunk in range(vpp):
                first = chunk * (model.num_layers // vpp) + stage * each
                table = {}
                for name, tensor in whole.items():
                    if name.startswith("decoder.layers."):
                        number, rest = name.removeprefix("decoder.layers.").split(".", 1)
                        if not first <= int(number) < first + each:
                            continue
                        local = f"decoder.layers.{int(number) - first}.{rest}"
                    else:
                        place = (0, 0) if "embedding" in name else (pp - 1, vpp - 1)
                        if (stage, chunk) != place:
                            continue
                        local = name
                    for old, new in renamed:
                        local = local.replace(old, new)
                    table[local] = cut(name, tensor, rank, tp).clone()
                table["decoder.layers.0.mlp.linear_fc1._extra_state"] = None
                content["model" if vpp == 1 else f"model{chunk}"] = table
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")
            place = root / "iter_0000007" / name
            place.mkdir(parents=True)
            torch.save(content, place / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text("7")
    (root / "hf").mkdir()
    (root / "hf" / "config.json").write_bytes((source / "config.json").read_bytes())
    return root


def same(first, second):
    a, b = (load_file(d / "model.safetensors") for d in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("family", "tp", "pp", "vpp", "renamed"), [
    ("llama", 1, 1, 1, ENGINE.items()),
    ("gemma2", 2, 2, 1, MINDSPEED.items()),
    ("qwen2", 2, 1, 1, ()),
    ("llama", 2, 2, 2, ()),
])  # fmt: skip
def test_becomes_the_model_it_was(tmp_path, tiny_hf_model, family, tp, pp, vpp, renamed):
    source = tiny_hf_model(family, tmp_path / "hf")
    root = legacy(source, tmp_path / "old", tp, pp, vpp=vpp, renamed=renamed)
    assert model_directory(root) == root / "hf"
    with pytest.raises(CheckpointError, match="--trust-pickle"):
        mcore_to_hf(root, tmp_path / "back")
    mcore_to_hf(root, tmp_path / "back", trust_pickle=True)
    assert same(source, tmp_path / "back")


def test_to_our_own_format_by_the_command(tmp_path, tiny_hf_model, capsys):
    from mindspeed_llm.cli import convert

    source = tiny_hf_model("llama", tmp_path / "hf")
    root = legacy(source, tmp_path / "old", 2, 2)
    convert.main(["--load-model-type", "mg", "--save-model-type", "mg", "--load-dir", str(root),
                  "--save-dir", str(tmp_path / "new"), "--trust-pickle",
                  "--target-tensor-parallel-size", "2"])  # fmt: skip
    assert "noted: TP 2, PP 1" in capsys.readouterr().out
    assert find_checkpoint(tmp_path / "new").common()["about"]["layout"]["tensor_parallel"] == 2
    mcore_to_hf(tmp_path / "new", tmp_path / "back")
    assert same(source, tmp_path / "back")


@pytest.fixture
def old(tmp_path, tiny_hf_model):
    return legacy(tiny_hf_model("llama", tmp_path / "hf"), tmp_path / "old", 2, 2)


def change(root, rank, do):
    path = root / "iter_0000007" / rank / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    do(content["model"])
    torch.save(content, path)


class Odd:
    pass


NORM = "decoder.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(("do", "words"), [
    (lambda model: model.pop(NORM), "elements are there"),
    (lambda model: model.update(extra=torch.zeros(2)), "unknown.*extra"),
    (lambda model: model.update({NORM: torch.zeros(3)}), r"shape \[3\], expected \[64\]"),
    (lambda model: model.update({NORM: torch.zeros(64).double()}), "layers have torch.float64"),
    (lambda model: model.update({NORM: Odd()}), "weights_only loader does not read it.*Odd"),
])  # fmt: skip
def test_damaged(tmp_path, old, do, words):
    change(old, "mp_rank_00_000", do)
    with pytest.raises(CheckpointError, match=words):
        mcore_to_hf(old, tmp_path / "back", trust_pickle=True)
    assert not (tmp_path / "back").exists()


def test_ranks_that_are_missing(tmp_path, old):
    (old / "iter_0000007" / "mp_rank_01_000" / "model_optim_rng.pt").unlink()
    with pytest.raises(CheckpointError, match="3 ranks.*TP 2 x PP 2"):
        mcore_to_hf(old, tmp_path / "back", trust_pickle=True)


def test_a_config_of_another_model(tmp_path, old):
    path = old / "hf" / "config.json"
    config = json.loads(path.read_text()) | {"intermediate_size": 48}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"linear_fc1.weight has shape .*expected"):
        mcore_to_hf(old, tmp_path / "back", trust_pickle=True)


def test_it_is_no_hugging_face_model(tmp_path, old):
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        hf_to_mcore(old / "hf", tmp_path / "new")
