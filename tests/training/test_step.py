"""Loss and gradient norm equal transformers' on the same weights, for every layout and batching."""

import pytest


@pytest.fixture(scope="module")
def oracle(transformers_steps, material):
    return transformers_steps(material["gemma2"])


VARIABLE = "--variable-seq-lengths"
ALONE = [
    [],
    [VARIABLE],
    [VARIABLE, "--micro-batch-size", "8"],
    [VARIABLE, "--micro-batch-size", "1", "--pad-to-multiple-of", "1"],
    [VARIABLE, "--recompute-granularity", "full", "--recompute-method", "uniform",
     "--recompute-num-layers", "1"],
    [VARIABLE, "--recompute-granularity", "selective"],
    [VARIABLE, "--use-distributed-optimizer"],
]  # fmt: skip
TP2 = [VARIABLE, "--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
PAIRS = [
    TP2,
    [*TP2, "--sequence-parallel"],
    [*TP2, "--sequence-parallel", "--recompute-granularity", "selective"],
    PP2,
    [VARIABLE, *PP2],
    [VARIABLE],
    [VARIABLE, "--use-distributed-optimizer"],
]
FOURS = [[*TP2, "--sequence-parallel", *PP2], [*TP2, "--use-distributed-optimizer"]]


@pytest.mark.parametrize(
    ("world_size", "variants"),
    [(1, ALONE), (2, PAIRS), pytest.param(4, FOURS, marks=pytest.mark.slow)],
)
def test_every_layout_equals_transformers(
    run_ranks, losses_of, same_steps, flags, oracle, world_size, variants
):
    for rank in run_ranks(world_size, losses_of, flags, variants, timeout=300):
        for steps in rank:
            same_steps(steps, oracle)


CP2 = ["--context-parallel-size", "2"]
VPP = [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]
UNEVEN = [*PP2, "--num-layer-list", "1,3"]
SP2 = [*TP2, "--sequence-parallel"]
LORA = ["--lora-r", "4", "--lora-alpha", "8"]
FROZEN = ["--train-only", "decoder.layers.[02].*", "decoder.final_layernorm.weight"]
CUT = {
    2: [[*kind, *layout] for kind in (LORA, FROZEN, []) for layout in (CP2, VPP, UNEVEN)],
    4: [[*LORA, *SP2, *VPP], [*LORA, *SP2, *CP2], [*LORA, *CP2, *UNEVEN], [*FROZEN, *SP2, *UNEVEN],
        [*LORA, *CP2, "--use-distributed-optimizer"], [*SP2, *CP2]],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world_size", sorted(CUT))
def test_adapters_frozen_layers_and_evaluation_at_layouts(run_ranks, losses_of, flags, world_size):
    """Losses, norms and the evaluation's losses by turn are those of one process."""
    kinds = {"lora": LORA, "frozen": FROZEN, "all": []}
    (alone,) = run_ranks(1, losses_of, flags, list(kinds.values()), timeout=300)
    expected = dict(zip(kinds, alone, strict=True))
    assert expected["lora"] != expected["all"] and expected["frozen"] != expected["all"]
    for rank in run_ranks(world_size, losses_of, flags, CUT[world_size], timeout=900):
        for variant, steps in zip(CUT[world_size], rank, strict=True):
            kind = {"--lora-r": "lora", "--train-only": "frozen"}.get(variant[0], "all")
            for found, wanted in zip(steps, expected[kind], strict=True):
                assert found[:2] == pytest.approx(wanted[:2], rel=1e-5), variant
                assert found[2] == wanted[2], variant
                for turn, other in zip(found[3], wanted[3], strict=True):
                    assert turn == pytest.approx(other, rel=1e-5), variant


def by_turn(flags, rows):
    """Runs in each rank: an evaluation of rows of [ids, labels] -> its loss and those by turn."""
    import torch

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.batch import Row, stack
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.setup import prepare
    from mindspeed_llm.training.step import evaluate_batch

    settings, architecture = read_settings(flags)
    inputs = read_inputs(settings, architecture, check_tokenizer=False)
    job = prepare(settings, inputs, torch.device("cpu"))
    samples = [{"input_ids": torch.tensor(i), "labels": torch.tensor(x)} for i, x in rows]
    batch = stack([Row.shifted(s) for s in samples], pad_id=0, length=None, multiple=4)
    totals = evaluate_batch(job.replica, [batch])
    return [totals.loss, {turn: loss for turn, (loss, _) in totals.turn_losses().items()}]


def test_losses_by_turn_equal_transformers(run_ranks, flags, material):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        material["gemma2"], dtype=torch.float32, attn_implementation="eager"
    )
    draw = torch.Generator().manual_seed(3)
    rows, sums = [], {}
    for answers in ([(3, 6), (9, 11), (14, 15)], [(2, 10)], [(1, 2), (5, 12)]):
        ids = torch.randint(1, 400, (18,), generator=draw)
        labels = torch.full_like(ids, -100)
        for turn, (start, end) in enumerate(answers, 1):
            labels[start:end] = ids[start:end]
            with torch.no_grad():
                logits = model(ids[None]).logits[0, start - 1 : end - 1]
            loss = torch.nn.functional.cross_entropy(logits, ids[start:end], reduction="sum")
            total, count = sums.get(turn, (0.0, 0))
            sums[turn] = total + float(loss), count + end - start
        rows.append([ids.tolist(), labels.tolist()])
    expected = {str(turn): total / count for turn, (total, count) in sums.items()}
    mean = sum(total for total, _ in sums.values()) / sum(count for _, count in sums.values())
    for loss, turns in run_ranks(2, by_turn, [*flags, "--tensor-model-parallel-size", "2"], rows):
        assert loss == pytest.approx(mean, rel=1e-5)
        assert turns == pytest.approx(expected, rel=1e-5)
