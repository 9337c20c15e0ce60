"""Training with experts, without and with the balancing loss, equals transformers' on the same
weights, with experts in one process and spread over two or four."""

import pytest

COEFFICIENT = 0.5  # large: a third of the gradient


def losses_of(flags, variants):
    """Runs inside each rank: the command line with each variant -> [[loss, norm, count], ...]."""
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
            assert abs(seen.loss - totals.loss) < 1e-5 * totals.loss
            steps.append([totals.loss, norm, totals.supervised])
        results.append(steps)
        parallel_state.destroy_model_parallel()
    return results


@pytest.fixture(scope="module")
def model_dir(tiny_chat_model):
    return str(tiny_chat_model("qwen3_moe"))


@pytest.fixture
def command(flags, model_dir):
    """Rows one by one: each micro-batch's balance is then that of a row."""
    return [*flags, "--load", model_dir, "--micro-batch-size", "1"]


def steps_of_transformers(model_dir, data, coefficient):
    """Three steps, one row at a time, with torch's AdamW; the balancing loss written out."""
    import torch
    from transformers import AutoModelForCausalLM

    from mindspeed_llm.data.dataset import SFTDataset
    from mindspeed_llm.data.order import RowOrder

    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    )
    experts, top_k = model.config.num_experts, model.config.num_experts_per_tok
    plain = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": plain}, {"params": norms, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
    rows = SFTDataset(data, tokenizer_sha256=None)
    order = RowOrder(len(rows), seed=1234)
    steps = []
    for step in range(3):
        adam.zero_grad()
        total, count, balance, tokens = torch.zeros(()), 0, torch.zeros(()), 0
        for position in range(8 * step, 8 * step + 8):
            row = rows[order.row(position)]
            answer = model(row["input_ids"][None, :-1], output_router_logits=True)
            labels = row["labels"][1:]
            total = total + torch.nn.functional.cross_entropy(
                answer.logits[0], labels, reduction="sum", ignore_index=-100
            )
            count += int((labels != -100).sum())
            tokens += len(labels)
            for logits in answer.router_logits:
                p = logits.softmax(-1)
                chosen = torch.zeros_like(p).scatter(1, p.topk(top_k).indices, 1.0)
                layer = experts * (chosen.mean(0) / top_k * p.mean(0)).sum()
                balance = balance + len(labels) * layer
        (total / count + coefficient * balance / tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        steps.append([float(total) / count, float(norm), count])
    return steps


@pytest.fixture(scope="module")
def oracle(material, model_dir):
    return {c: steps_of_transformers(model_dir, material["data"], c) for c in (0.0, COEFFICIENT)}


VARIABLE = "--variable-seq-lengths"
FULL = ["--recompute-granularity", "full", "--recompute-method", "uniform",
        "--recompute-num-layers", "1"]  # fmt: skip
EP2 = ["--expert-model-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
WHOLE = ["--expert-tensor-parallel-size", "1"]
CP2 = ["--context-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
SHARDED = "--use-distributed-optimizer"
ALONE = [[], [VARIABLE, *FULL]]
PAIRS = [[VARIABLE, *EP2, SHARDED], [*TP2, *EP2, *WHOLE]]
MORE_PAIRS = [[VARIABLE, *EP2], [*TP2, *EP2, *WHOLE, SHARDED], PP2, TP2, CP2]
FOURS = [[VARIABLE, *EP2, SHARDED], [*PP2, *EP2], [VARIABLE, *TP2, *EP2],
         [*TP2, *EP2, *WHOLE, *PP2], [*CP2, *EP2]]  # fmt: skip


@pytest.mark.parametrize(
    ("world_size", "variants"),
    [
        (1, ALONE),
        (2, PAIRS),
        pytest.param(2, MORE_PAIRS, marks=pytest.mark.slow),
        pytest.param(4, FOURS, marks=pytest.mark.slow),
    ],
)
def test_every_layout_equals_transformers(run_ranks, command, oracle, world_size, variants):
    balanced = ["--moe-aux-loss-coeff", str(COEFFICIENT)]
    both = [*variants, *([*variant, *balanced] for variant in variants)]
    for rank in run_ranks(world_size, losses_of, command, both, timeout=300):
        for number, steps in enumerate(rank):
            expected = oracle[0.0 if number < len(variants) else COEFFICIENT]
            for found, wanted in zip(steps, expected, strict=True):
                assert found[0] == pytest.approx(wanted[0], rel=1e-5), both[number]
                assert found[1] == pytest.approx(wanted[1], rel=1e-4), both[number]
                assert found[2] == wanted[2]


def test_the_balancing_loss_acts(oracle):
    plain, balanced = oracle[0.0], oracle[COEFFICIENT]
    assert abs(balanced[0][1] / plain[0][1] - 1) > 1e-2
    assert abs(balanced[2][0] / plain[2][0] - 1) > 1e-4
