"""Adapters' gradients equal PEFT's in every layout; only adapters change; they start alike."""

import math

import pytest
import torch

from mindspeed_llm.checkpoint.adapter import read_lora
from mindspeed_llm.checkpoint.directory import find_checkpoint
from mindspeed_llm.models.names import expand, to_mcore
from mindspeed_llm.models.registry import read_model, rules_of

RANK, ALPHA = 3, 5
LAYOUTS = {
    "data": [],
    "zero": ["--use-distributed-optimizer"],
    "tensor": ["--tensor-model-parallel-size", "2"],
    "sequence": ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
    "pipeline": ["--pipeline-model-parallel-size", "2"],
    "recomputed": ["--tensor-model-parallel-size", "2", "--recompute-granularity", "full",
                   "--recompute-method", "uniform", "--recompute-num-layers", "1"],
}  # fmt: skip


def gradients(*jobs):
    """For each command line: one step without a change, whose gradients are saved in the place of
    the adapters; then the first batch, the loss, the norm, and what is trained."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import Position
    from mindspeed_llm.training.setup import prepare
    from mindspeed_llm.training.step import train_batch

    results = []
    for flags in jobs:
        parallel_state.destroy_model_parallel()
        settings, architecture = read_settings(flags)
        job = prepare(settings, read_inputs(settings, architecture, check_tokenizer=False),
                      torch.device("cpu"))  # fmt: skip
        batch = job.feed.micro_batches(0)
        totals, norm = train_batch(job.replica, batch)
        model = job.replica.model[0]
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        with torch.no_grad():
            for _, parameter in trained:
                parameter.copy_(parameter.main_grad)
        if "--use-distributed-optimizer" not in flags:
            job.save(Position(1, job.batch_size))
        buffers = sum(buffer.numel_unpadded for buffer in model.buffers)
        results.append({
            "batch": [[b.tokens.tolist(), b.targets.tolist()] for b in batch],
            "loss": totals.loss, "norm": norm, "buffers": buffers,
            "trained": sum(p.numel() for _, p in trained),
            "names": [name for name, _ in trained],
        })  # fmt: skip
    return results


@pytest.fixture
def peft_adapter(tmp_path):
    """Factory: a PEFT model on `model_dir` with random A and B, and the directory it is saved in.

    With `shared`, q, k and v have one A, and so have gate and up, as adapters of ours do.
    """
    import peft
    import transformers

    def make(model_dir, shared=True, **changes):
        base = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, attn_implementation="eager"
        )
        names = {name.rpartition(".")[2] for name, module in base.named_modules()
                 if isinstance(module, torch.nn.Linear) and "lm_head" not in name}  # fmt: skip
        config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(names),
                  "task_type": "CAUSAL_LM"}  # fmt: skip
        model = peft.get_peft_model(base, peft.LoraConfig(**(config | changes)))
        drawn = torch.Generator().manual_seed(3)
        groups = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                if "lora_" in name:
                    weight.normal_(0, 0.2, generator=drawn)
            for name, weight in weights.items():
                for part, first in groups.items() if shared else ():
                    if f".{part}.lora_A" in name and (twin := name.replace(part, first)) in weights:
                        weight.copy_(weights[twin])
        directory = tmp_path / f"peft{len(list(tmp_path.glob('peft*')))}"
        model.save_pretrained(directory)
        return model, directory

    return make


def expected_gradients(model, model_dir, batch):
    """PEFT's for the mean loss over supervised tokens, as (target, layer) -> (dA, dB)."""
    sums, count = 0.0, 0
    for tokens, targets in batch:
        logits = model(torch.tensor(tokens)).logits
        targets = torch.tensor(targets)
        sums = sums + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        )
        count += int((targets != -100).sum())
    (sums / count).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    config = read_model(model_dir)
    result = {}
    for rule in expand(rules_of(config), config.num_layers):
        modules = [f"base_model.model.{name.removesuffix('.weight')}" for name in rule.hf]
        if f"{modules[0]}.lora_A.default.weight" in grads:
            a, b = ([grads[f"{m}.lora_{part}.default.weight"] for m in modules] for part in "AB")
            words = rule.mcore.split(".")
            result[words[-2], int(words[2])] = (sum(a), to_mcore(rule, config, b))
    return (sums / count).item(), result


def close(found, expected, relative):
    assert found.keys() == expected.keys()
    for place, pair in expected.items():
        for ours, theirs in zip(found[place], pair, strict=True):
            assert (ours - theirs).norm() <= relative * theirs.norm(), place


@pytest.mark.parametrize("family", ["gemma2", pytest.param("phi3", marks=pytest.mark.slow)])
def test_gradients_equal_pefts_in_every_layout(
    run_ranks, flags, tmp_path, tiny_chat_model, peft_adapter, family
):
    source = tiny_chat_model(family)
    model, adapter = peft_adapter(source)
    command = [*flags, "--load", str(source), "--finetune", "--clip-grad", "0", "--lora-load",
               str(adapter), "--no-shuffle"]  # fmt: skip
    (alone,) = run_ranks(1, gradients, [*command, "--save", str(tmp_path / "alone")])[0]
    loss, expected = expected_gradients(model, source, alone["batch"])
    assert alone["loss"] == pytest.approx(loss, rel=1e-5)
    assert len(expected) == 4 * 4  # targets and layers
    found = read_lora(find_checkpoint(tmp_path / "alone")).factors
    close(found, expected, 1e-4)
    total = math.sqrt(sum(float(g.square().sum()) for pair in expected.values() for g in pair))
    assert alone["norm"] == pytest.approx(total, rel=1e-4)
    assert (
        alone["buffers"]
        == alone["trained"]
        == sum(g.numel() for pair in expected.values() for g in pair)
    ), "gradient buffers are the adapters' alone"
    layouts = LAYOUTS if family == "gemma2" else {"sequence": LAYOUTS["sequence"]}
    jobs = [[*command, *more, "--save", str(tmp_path / name)] for name, more in layouts.items()]
    for name, result in zip(layouts, run_ranks(2, gradients, *jobs)[-1], strict=True):
        assert result["loss"] == pytest.approx(alone["loss"], rel=1e-5), name
        assert result["norm"] == pytest.approx(alone["norm"], rel=1e-5), name
        if name != "zero":  # where each rank has a part of the sums
            close(read_lora(find_checkpoint(tmp_path / name)).factors, found, 1e-5)


def start(*jobs):
    """Saves each command line's adapter as it starts."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import Position
    from mindspeed_llm.training.setup import prepare

    for flags in jobs:
        parallel_state.destroy_model_parallel()
        settings, architecture = read_settings(flags)
        inputs = read_inputs(settings, architecture, check_tokenizer=False)
        prepare(settings, inputs, torch.device("cpu")).save(Position(1, 8))


def test_a_new_adapter_starts_alike_in_every_layout_and_adds_nothing(run_ranks, flags, tmp_path):
    command = [*flags, "--lora-r", "4", "--lora-target-modules", "linear_proj", "linear_qkv"]
    layouts = {name: LAYOUTS[name] for name in ("data", "sequence", "pipeline")}
    jobs = [[*command, *more, "--save", str(tmp_path / name)] for name, more in layouts.items()]
    run_ranks(2, start, *jobs)
    adapters = [read_lora(find_checkpoint(tmp_path / name)) for name in layouts]
    assert adapters[0].config.targets == ("linear_qkv", "linear_proj")
    assert adapters[0].config.alpha == 32 and len(adapters[0].factors) == 8
    for place, (a, b) in adapters[0].factors.items():
        assert not b.any()
        # uniform within 1 / sqrt(columns), as PEFT draws it
        edge = a.shape[1] ** -0.5
        assert 0.8 * edge < a.abs().max() <= edge and a.std() == pytest.approx(
            edge / 3**0.5, rel=0.2
        )
        for other in adapters[1:]:
            assert torch.equal(other.factors[place][0], a)
    values = [a for a, _ in adapters[0].factors.values()]
    assert not torch.equal(values[0], values[1]), "every layer draws its own"
