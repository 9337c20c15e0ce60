"""Adapters that PEFT wrote are read, and those that are written PEFT opens."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_llm.checkpoint.adapter import Adapter
from mindspeed_llm.checkpoint.peft import CONFIG, WEIGHTS, is_peft_directory, read_peft, write_peft
from mindspeed_llm.config.tuning import TARGETS, LoraConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.registry import read_model

FAMILIES = ["gemma2", "phi3"]


def draw(model, rank=3, layers=None):
    """A random adapter of ours on all targets."""
    heads, groups, dim = model.num_attention_heads, model.num_query_groups, model.head_dim
    rows = {"linear_qkv": ((heads + 2 * groups) * dim, model.hidden_size),
            "linear_proj": (model.hidden_size, heads * dim),
            "linear_fc1": (2 * model.ffn_hidden_size, model.hidden_size),
            "linear_fc2": (model.hidden_size, model.ffn_hidden_size)}  # fmt: skip
    drawn = torch.Generator().manual_seed(2)
    factors = {
        (target, layer): (torch.randn(rank, n_in, generator=drawn) * 0.2,
                          torch.randn(n_out, rank, generator=drawn) * 0.2)
        for target, (n_out, n_in) in rows.items() for layer in range(model.num_layers)
    }  # fmt: skip
    config = LoraConfig(rank=rank, alpha=5.0, dropout=0.25, targets=TARGETS)
    return Adapter(config=config, factors=factors)


@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_read_again_is_bit_equal(tmp_path, tiny_hf_model, family):
    model = read_model(tiny_hf_model(family, tmp_path / "hf"))
    adapter = draw(model)
    count = write_peft(adapter, model, tmp_path / "peft", base="there", overwrite=False)
    assert is_peft_directory(tmp_path / "peft") and count == len(
        load_file(tmp_path / "peft" / WEIGHTS)
    )
    again = read_peft(tmp_path / "peft", model)
    assert again.config == adapter.config and again.factors.keys() == adapter.factors.keys()
    for place, pair in adapter.factors.items():
        assert all(torch.equal(*both) for both in zip(pair, again.factors[place], strict=True))
    with pytest.raises(CheckpointError, match="holds an adapter already.*--overwrite"):
        write_peft(adapter, model, tmp_path / "peft", base=None, overwrite=False)
    write_peft(adapter, model, tmp_path / "peft", base=None, overwrite=True)
    with pytest.raises(CheckpointError, match="not empty and no PEFT adapter"):
        write_peft(adapter, model, tmp_path / "hf", base=None, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "peft"]


def test_replacing_an_adapter_that_fails_leaves_the_old_one(tmp_path, tiny_hf_model, monkeypatch):
    model = read_model(tiny_hf_model("llama", tmp_path / "hf"))
    where = tmp_path / "peft"
    write_peft(draw(model), model, where, base="old", overwrite=False)
    before = (where / WEIGHTS).read_bytes()

    def refuse(source, target):
        if ".tmp-" in str(source):
            raise OSError("no entry left")
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no entry"):
        write_peft(draw(model), model, where, base="new", overwrite=True)
    assert (where / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "peft"]


@pytest.mark.parametrize("shared", [True, False])
def test_pefts_own_adapter_means_the_same_change_of_weights(tmp_path, tiny_hf_model, shared):
    """With an A for each of q, k and v; on some modules and layers; scaled by the root of r."""
    import peft
    import transformers

    from mindspeed_llm.models.names import expand, to_mcore
    from mindspeed_llm.models.registry import rules_of

    source = tiny_hf_model("gemma2", tmp_path / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(source)
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    config = peft.LoraConfig(
        r=2, lora_alpha=7, use_rslora=True, task_type="CAUSAL_LM", layers_to_transform=[1, 3],
        target_modules=["q_proj", "v_proj", "down_proj", "gate_proj"],
    )  # fmt: skip
    tuned = peft.get_peft_model(base, config)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3, generator=drawn)
    tuned.save_pretrained(tmp_path / "peft")
    after = dict(tuned.merge_and_unload().named_parameters())
    model = read_model(source)
    adapter = read_peft(tmp_path / "peft", model)
    assert {layer for _, layer in adapter.factors} == {1, 3}
    assert adapter.config.targets == ("linear_qkv", "linear_fc1", "linear_fc2")
    for rule in expand(rules_of(model), model.num_layers):
        words = rule.mcore.split(".")
        place = (words[-2], int(words[2])) if len(words) > 5 - 1 and words[0] == "decoder" else None
        expected = to_mcore(rule, model, [(after[n] - before[n]).detach() for n in rule.hf])
        if place in adapter.factors:
            a, b = adapter.factors[place]
            torch.testing.assert_close(adapter.config.scale * b @ a, expected, atol=2e-6, rtol=1e-4)
        else:
            assert not expected.any(), rule.mcore
    with pytest.raises(CheckpointError, match="every layer"):
        adapter.source(model.num_layers)


def edited(directory, **changes):
    said = json.loads((directory / CONFIG).read_text()) | changes
    (directory / CONFIG).write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"something_new": 1}, "something_new is 1"),
        ({"peft_type": "LOHA"}, "expected 'LORA'"),
        ({"r": 0}, "r is 0"),
        ({"r": 4}, "expected \\[4, 64\\]"),
    ],
)
def test_what_would_change_the_numbers_is_refused(tmp_path, tiny_hf_model, changes, words):
    model = read_model(tiny_hf_model("llama", tmp_path / "hf"))
    write_peft(draw(model), model, tmp_path / "peft", base=None, overwrite=False)
    edited(tmp_path / "peft", **changes)
    with pytest.raises(CheckpointError, match=words):
        read_peft(tmp_path / "peft", model)


def test_tensors_that_do_not_fit_are_named(tmp_path, tiny_hf_model):
    model = read_model(tiny_hf_model("llama", tmp_path / "hf"))
    write_peft(draw(model), model, tmp_path / "peft", base=None, overwrite=False)
    path = tmp_path / "peft" / WEIGHTS
    tensors = load_file(path)
    alone = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for wrong, words in (
        ({n: t for n, t in tensors.items() if n != alone}, "q_proj.lora_B.weight .*lacks"),
        (tensors | {"base_model.model.lm_head.lora_A.weight": torch.ones(3, 64)}, "lm_head.lora_A"),
        ({alone: tensors[alone].long()}, "no fp32, bf16 or fp16"),
        ({}, "holds no adapter"),
    ):
        save_file(wrong, path)
        with pytest.raises(CheckpointError, match=words):
            read_peft(tmp_path / "peft", model)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing; adapters are read from safetensors"):
        read_peft(tmp_path / "peft", model)
