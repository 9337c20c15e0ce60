"""Loss and gradient norm equal transformers' on the same weights, for every layout and batching."""

import pytest


def losses_of(flags, variants):
    """Runs inside each rank: the command line with each variant -> [[loss, norm], ...]."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.setup import prepare
    from mindspeed_llm.training.step import evaluate_batch, train_batch

    results = []
    for variant in variants:
        settings, architecture = read_settings([*flags, *variant])
        inputs = read_inputs(settings, architecture, check_tokenizer=False)
        job = prepare(settings, inputs, torch.device("cpu"))
        steps = []
        for iteration in range(job.total):
            batches = job.feed.micro_batches(iteration * job.batch_size)
            seen = evaluate_batch(job.replica, batches)
            totals, norm = train_batch(job.replica, batches)
            job.replica.schedule.step(job.batch_size)
            assert abs(seen.loss - totals.loss) < 1e-6 * totals.loss
            steps.append([totals.loss, norm, totals.supervised])
        results.append(steps)
        parallel_state.destroy_model_parallel()
    return results


@pytest.fixture(scope="module")
def oracle(material):
    """The same three steps in transformers, one row at a time, with torch's AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    from mindspeed_llm.data.dataset import SFTDataset
    from mindspeed_llm.data.order import RowOrder

    model = AutoModelForCausalLM.from_pretrained(
        material["gemma2"], dtype=torch.float32, attn_implementation="eager"
    )
    plain = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": plain}, {"params": norms, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
    rows = SFTDataset(material["data"], tokenizer_sha256=None)
    order = RowOrder(len(rows), seed=1234)
    steps = []
    for step in range(3):
        adam.zero_grad()
        total, count = torch.zeros(()), 0
        for position in range(8 * step, 8 * step + 8):
            row = rows[order.row(position)]
            logits = model(row["input_ids"][None]).logits[0, :-1]
            labels = row["labels"][1:]
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum",
                                                              ignore_index=-100)  # fmt: skip
            count += int((labels != -100).sum())
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        steps.append([float(total) / count, float(norm), count])
    return steps


def check(steps, oracle):
    for found, expected in zip(steps, oracle, strict=True):
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert found[1] == pytest.approx(expected[1], rel=1e-4)
        assert found[2] == expected[2]


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
def test_every_layout_equals_transformers(run_ranks, flags, oracle, world_size, variants):
    for rank in run_ranks(world_size, losses_of, flags, variants, timeout=300):
        for steps in rank:
            check(steps, oracle)


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
