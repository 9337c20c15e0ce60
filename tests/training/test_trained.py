"""Frozen parameters stay, others move; LoRA and frozen runs continue to the bit or are refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.weights import Place
from mindspeed_llm.config.tuning import LoraConfig, TuningSettings
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.models.registry import read_model
from mindspeed_llm.training.trained import Choice, choose, parameter_names, table


def run(*jobs):
    """Each command line in turn: its losses, what moved by how much, or the error."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.errors import UserError
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import train
    from mindspeed_llm.training.lora import global_names
    from mindspeed_llm.training.setup import prepare

    results = []
    for flags in jobs:
        parallel_state.destroy_model_parallel()
        try:
            settings, architecture = read_settings(flags)
            inputs = read_inputs(settings, architecture, check_tokenizer=False)
            job = prepare(settings, inputs, torch.device("cpu"))
        except UserError as error:
            results.append(str(error))
            continue
        named = global_names(job.replica.model[0].module)
        before = {name: p.detach().clone() for name, p in named.items()}
        train(job)
        moved = {name: bool((p != before[name]).any()) for name, p in named.items()}
        results.append({"moved": moved, "start": job.start.iteration})
    return results


def files(root, iteration):
    return {path.name: path.read_bytes()
            for path in (root / f"iter_{iteration:07d}").glob("*.safetensors")}  # fmt: skip


def losses(root):
    lines = map(json.loads, (root / "logs/train.jsonl").read_text().splitlines())
    return [[line["loss"], line["grad_norm"]] for line in lines if "loss" in line]


FREEZE = ["--freeze", "embedding.*", "decoder.layers.[01].*", "*norm*"]
FULL_RECOMPUTE = ["--recompute-granularity", "full", "--recompute-method", "uniform",
                  "--recompute-num-layers", "1"]  # fmt: skip


def test_only_what_is_not_frozen_moves_in_every_layout(run_ranks, flags, tmp_path):
    def job(name, *more):
        return [*flags, "--train-iters", "2", "--save", str(tmp_path / name), *more]

    start = tmp_path / "plain/iter_0000001"
    plain, again, other = run_ranks(
        1, run, job("plain", "--save-interval", "1", *FREEZE),
        job("again", *FREEZE, "--load", str(start)), job("other", "--load", str(start)),
    )[0]  # fmt: skip
    assert again["start"] == 1 and files(tmp_path / "again", 2) == files(tmp_path / "plain", 2)
    assert "what is trained was --freeze embedding.* " in other and "and is all. Use" in other
    expected = {n for n in plain["moved"] if ".layers.2." in n or ".layers.3." in n}
    expected = {n for n in expected if "norm" not in n}
    assert {n for n, moved in plain["moved"].items() if moved} == expected and expected
    pipeline = ["--pipeline-model-parallel-size", "2"]
    tensor = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
    layouts = {"pipeline": [*pipeline, *FREEZE], "recomputed": [*tensor, *FULL_RECOMPUTE, *FREEZE],
               "zero": ["--use-distributed-optimizer", *FREEZE]}  # fmt: skip
    ranks = run_ranks(2, run, *(job(name, *more) for name, more in layouts.items()))
    for number, name in enumerate(layouts):
        moved = {n for rank in ranks for n, yes in rank[number]["moved"].items() if yes}
        assert moved == expected, name
        torch.testing.assert_close(torch.tensor(losses(tmp_path / name)),
                                   torch.tensor(losses(tmp_path / "plain")),
                                   rtol=1e-5, atol=0)  # fmt: skip


def test_a_lora_run_continues_to_the_bit_and_refuses_what_is_not_its_own(
    run_ranks, flags, tmp_path, material, tiny_hf_model, tiny_chat_model
):
    base, whole, part = material["gemma2"], tmp_path / "whole", tmp_path / "part"
    lora = ["--lora-r", "4", "--lora-alpha", "8", "--lora-dropout", "0.2"]
    long = [*flags, *lora, "--train-iters", "4"]
    first = [*long, "--save", str(whole), "--save-interval", "2"]
    full = [*flags, "--train-iters", "1", "--save", str(tmp_path / "full")]
    middle = whole / "iter_0000002"
    again = [*long, "--save", str(part)]
    other = tiny_hf_model("gemma2", tmp_path / "other", vocab_size=481, seed=1)
    jobs = [
        [*again, "--load", str(middle)],
        [*again, "--load", base, "--lora-load", str(middle), "--save", str(tmp_path / "apart")],
        [*again, "--load", str(other), "--lora-load", str(middle)],
        [*again, "--load", str(middle), "--lora-r", "8"],
        [*again, "--load", str(middle), "--lora-dropout", "0"],
        [*again, "--load", str(tmp_path / "full")],
        [*again, "--load", str(middle), "--freeze", "*", "--lora-load", base],
        [*flags, "--load", str(middle), "--finetune", "--train-iters", "1"],
    ]
    started, trained, *results = run_ranks(1, run, first, full, *jobs)[0]
    assert {n.rpartition(".")[2] for n, yes in started["moved"].items() if yes} <= {
        "lora_a", "lora_b"
    } and any(started["moved"].values())  # fmt: skip
    assert trained["start"] == 0
    assert results[0]["start"] == results[1]["start"] == 2
    assert losses(whole)[2:] == losses(part) == losses(tmp_path / "apart")
    assert files(whole, 4) == files(part, 4) == files(tmp_path / "apart", 4)
    names = [name for content in (whole / "iter_0000004").glob("model-*.safetensors")
             for name in load_file(content)]  # fmt: skip
    assert len(names) == 4 * 4 * 2 + 4 and all(".adapter.lora_" in name for name in names)
    for result, words in zip(results[2:7], (
        "not the weights that the adapter", "--lora-r 4 .*--lora-r 8", "what is trained was",
        "interrupted run of the whole model", "--freeze has no effect with LoRA",
    ), strict=True):  # fmt: skip
        assert isinstance(result, str) and re.search(words, result), result
    assert results[7]["start"] == 0


def test_the_choice_is_checked_against_the_model_and_counted(tiny_hf_model, tmp_path):
    model = read_model(tiny_hf_model("llama", tmp_path / "hf"))
    place, names = Place(base=tmp_path / "hf"), parameter_names(model)
    everything = choose(TuningSettings(), place, None, model)
    assert everything.said == "all" and everything.names == frozenset(names)
    frozen = choose(TuningSettings(freeze=("*.mlp.*", "emb*")), place, None, model)
    assert frozen.said == "--freeze *.mlp.* emb*"
    assert len(frozen.names) == len(names) - 4 * 2 - 1
    lines = table(frozen, model)
    assert lines[0] == "trained parameters" and not any("mlp.linear" in line for line in lines)
    counted = "decoder.layers.*.self_attention.linear_proj.weight"
    assert any(counted in line and line.split()[1:3] == ["24.58", "k"] for line in lines)
    lora = LoraConfig(rank=2, alpha=4.0, dropout=0.0, targets=("linear_fc2",))
    chosen = choose(TuningSettings(), place, lora, model)
    assert isinstance(chosen, Choice) and chosen.said == lora.flags()
    lines = table(chosen, model)
    assert len(lines) == 3 and "linear_fc2.weight" in lines[1]
    assert lines[1].split()[1:] == ["1.28", "k", "beside", "24.58", "k"]  # 4 x 2 x (96 + 64)
    assert lines[2].startswith("  in all") and lines[2].endswith("%)")


@pytest.mark.parametrize(("changes", "flags", "message"), [
    ({}, {"lora_r": 4}, "linear_fc1 and linear_fc2 are experts .*linear_qkv linear_proj"),
    ({}, {"lora_target_modules": ("linear_qkv", "linear_fc2")}, "linear_fc2 are experts"),
    ({"mlp_only_layers": [0]}, {"lora_target_modules": ("linear_qkv",)}, "only some layers"),
])  # fmt: skip
def test_experts_take_no_adapters(changes, flags, message, tiny_hf_model, tmp_path):
    directory = tiny_hf_model("qwen3_moe", tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        choose(TuningSettings(**flags), Place(base=directory), None, read_model(directory))


def test_a_model_with_experts_takes_adapters_at_attention(tiny_hf_model, tmp_path):
    directory = tiny_hf_model("qwen3_moe", tmp_path)
    tuning = TuningSettings(lora_target_modules=("linear_qkv", "linear_proj"))
    choice = choose(tuning, Place(base=directory), None, read_model(directory))
    assert choice.lora.targets == ("linear_qkv", "linear_proj")
