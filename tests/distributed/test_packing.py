"""Packed training equals unpacked training: the loss and every gradient, in every layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers

from mindspeed_llm.data.dataset import SFTDataset


def compare(models, layouts, sizes):
    """Runs in a rank: {model: directory, unpacked, packed}, {name: flags}, micro-batch sizes of
    packed rows -> differences.

    One step over the same 24 conversations, as rows of their own and as 8 packed rows.
    """
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.setup import prepare
    from mindspeed_llm.training.step import train_batch

    def step(directory, prefix, rows, *flags):
        settings, architecture = read_settings([
            "--load", directory, "--data-path", prefix, "--train-iters", "1", "--lr", "1e-3",
            "--lr-decay-style", "constant", "--clip-grad", "0", "--global-batch-size", rows,
            *flags,
        ])  # fmt: skip
        inputs = read_inputs(settings, architecture, check_tokenizer=False)
        job = prepare(settings, inputs, torch.device("cpu"))
        totals, norm = train_batch(job.replica, job.feed.micro_batches(0))
        parameters = job.replica.model[0].named_parameters()
        gradients = {name: weight.main_grad.clone() for name, weight in parameters}
        parallel_state.destroy_model_parallel()
        return totals, norm, gradients

    def apart(found, wanted):
        return float((found - wanted).norm() / wanted.norm())

    results = {}
    for model, (directory, unpacked, packed) in models.items():
        for layout, flags in layouts.items():
            plain = ["--seq-length", "32", "--micro-batch-size", "2"]
            wanted = step(directory, unpacked, "24", *plain, *flags)
            for micro in sizes:
                together = ["--seq-length", "60", "--micro-batch-size", micro]
                found = step(directory, packed, "8", *together, *flags)
                results[f"{model} {layout} {micro}"] = {
                    "value": found[0].loss,
                    "loss": abs(found[0].loss / wanted[0].loss - 1),
                    "norm": abs(found[1] / wanted[1] - 1),
                    "gradient": max(apart(found[2][name], wanted[2][name]) for name in wanted[2]),
                    "supervised": [found[0].supervised, wanted[0].supervised],
                    "real": [found[0].real_tokens, wanted[0].real_tokens],
                    "computed": found[0].padded_tokens,
                }
    return results


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_sft_data, tiny_tokenizer_dir):
    """24 conversations of 6 to 28 tokens, unpacked and packed: beginnings at multiples of 4."""
    folder = tmp_path_factory.mktemp("packing")
    unpacked = tiny_sft_data(folder / "rows", tiny_tokenizer_dir)
    packed = tiny_sft_data(folder / "packs", tiny_tokenizer_dir, capacity=60, multiple=4)
    return [str(unpacked), str(packed)]


def check(ranks):
    for name, found in ((name, found) for rank in ranks for name, found in rank.items()):
        assert found["loss"] < 1e-5 and found["norm"] < 1e-4, (name, found)
        assert found["gradient"] < 1e-4, (name, found)
        assert found["supervised"][0] == found["supervised"][1] > 0, name
        assert found["real"][0] == found["real"][1] > 24 * 6, name
        assert found["computed"] == 8 * 60, name


FULL = ["--recompute-granularity", "full", "--recompute-method", "uniform",
        "--recompute-num-layers", "1"]  # fmt: skip
TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]


def mean_loss(directory, prefix):
    """transformers' mean over the supervised tokens of a data set, one row at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    rows, total, count = SFTDataset(prefix, tokenizer_sha256=None), 0.0, 0
    with torch.no_grad():
        for row in (rows[number] for number in range(len(rows))):
            logits, labels = model(row["input_ids"][None]).logits[0, :-1], row["labels"][1:]
            total += float(F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
            count += int((labels != -100).sum())
    return total / count


def test_every_family_alone(run_ranks, data, tiny_chat_model):
    """Sequences are longer than the window of 8; Gemma 2's soft cap is exceeded."""
    families = ("gemma2", "gemma3", "llama", "qwen3")
    models = {family: [str(tiny_chat_model(family)), *data] for family in families}
    ranks = run_ranks(1, compare, models, {"alone": []}, ["1", "2", "4"])
    check(ranks)
    for family, (directory, unpacked, _) in models.items():
        expected = mean_loss(directory, unpacked)
        for micro in ("1", "2", "4"):
            assert ranks[0][f"{family} alone {micro}"]["value"] == pytest.approx(expected, rel=1e-5)


def test_recomputation(run_ranks, data, tiny_chat_model):
    models = {family: [str(tiny_chat_model(family)), *data] for family in ("gemma2", "gemma3")}
    layouts = {"full": FULL, "selective": ["--recompute-granularity", "selective"]}
    check(run_ranks(1, compare, models, layouts, ["2"]))


def test_two_processes(run_ranks, data, tiny_chat_model):
    models = {family: [str(tiny_chat_model(family)), *data] for family in ("gemma2", "gemma3")}
    layouts = {"tp": TP2, "sp": [*TP2, "--sequence-parallel"], "pp": PP2, "dp": []}
    check(run_ranks(2, compare, models, layouts, ["2"], timeout=300))


@pytest.mark.slow
def test_four_processes(run_ranks, data, tiny_chat_model):
    models = {"gemma3": [str(tiny_chat_model("gemma3")), *data]}
    layouts = {"tp sp pp": [*TP2, "--sequence-parallel", *PP2, *FULL], "tp dp": TP2, "pp dp": PP2}
    check(run_ranks(4, compare, models, layouts, ["2"], timeout=300))
