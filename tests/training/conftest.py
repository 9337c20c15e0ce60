"""What the tests of training share: a tiny model with a prepared data set, and its command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def material(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_chat_model: Callable[[str], Path],
    tiny_sft_data: Callable[..., Path],
    tiny_tokenizer_dir: Path,
) -> dict[str, str]:
    """`{"gemma2": model directory, "data": prefix}`; 24 rows of 6 to 30 tokens."""
    prefix = tmp_path_factory.mktemp("sft") / "rows"
    tiny_sft_data(prefix, tiny_tokenizer_dir)
    return {"gemma2": str(tiny_chat_model("gemma2")), "data": str(prefix)}


@pytest.fixture
def flags(material: dict[str, str]) -> list[str]:
    """A command line for three iterations of 8 rows in micro-batches of 2."""
    return [
        "--load", material["gemma2"], "--data-path", material["data"], "--seq-length", "32",
        "--train-iters", "3", "--micro-batch-size", "2", "--global-batch-size", "8",
        "--lr", "1e-3", "--lr-decay-style", "constant",
    ]  # fmt: skip


def _losses_of(flags, variants):
    """Runs inside each rank: the command line with each variant -> a list for each step: loss,
    gradient norm, supervised tokens, and the losses by turn that an evaluation saw before it."""
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
            if not inputs.model.experts:  # their tokens may be summed in another order
                assert abs(seen.loss - totals.loss) < 1e-6 * totals.loss, variant
            assert abs(seen.loss - totals.loss) < 1e-5 * totals.loss, variant
            turns = [list(turn) for turn in seen.turn_losses().values()]
            steps.append([totals.loss, norm, totals.supervised, turns])
        results.append(steps)
        parallel_state.destroy_model_parallel()
    return results


@pytest.fixture(scope="session")
def losses_of() -> Callable[..., Any]:
    """For `run_ranks`: `(flags, variants)` -> for each variant of the command line its steps, each
    [loss, gradient norm, supervised tokens, [[loss, tokens] by turn]]."""
    return _losses_of


@pytest.fixture(scope="session")
def transformers_steps(material: dict[str, str]) -> Callable[..., list[list[float]]]:
    """`(model directory, coefficient)` -> loss, norm and supervised tokens of three steps of eight
    rows in transformers, one row at a time, with torch's AdamW.

    The balancing loss of experts is written out, times `coefficient`.
    """

    def steps_of(model_dir: str, coefficient: float | None = None) -> list[list[float]]:
        import torch
        from transformers import AutoModelForCausalLM

        from mindspeed_llm.data.dataset import SFTDataset
        from mindspeed_llm.data.order import RowOrder

        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager"
        )
        sparse = {} if coefficient is None else {"output_router_logits": True}
        plain = [p for p in model.parameters() if p.dim() > 1]
        norms = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": plain}, {"params": norms, "weight_decay": 0.0}]
        adam = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
        rows = SFTDataset(material["data"], tokenizer_sha256=None)
        order = RowOrder(len(rows), seed=1234)
        steps = []
        for step in range(3):
            adam.zero_grad()
            total, count, balance, tokens = torch.zeros(()), 0, torch.zeros(()), 0
            for position in range(8 * step, 8 * step + 8):
                row = rows[order.row(position)]
                answer = model(row["input_ids"][None, :-1], **sparse)
                labels = row["labels"][1:]
                total = total + torch.nn.functional.cross_entropy(
                    answer.logits[0], labels, reduction="sum", ignore_index=-100
                )
                count += int((labels != -100).sum())
                tokens += len(labels)
                for logits in answer.router_logits if sparse else ():
                    p, experts, top_k = (logits.softmax(-1), model.config.num_experts,
                                         model.config.num_experts_per_tok)  # fmt: skip
                    chosen = torch.zeros_like(p).scatter(1, p.topk(top_k).indices, 1.0)
                    layer = experts * (chosen.mean(0) / top_k * p.mean(0)).sum()
                    balance = balance + len(labels) * layer
            (total / count + (coefficient or 0.0) * balance / tokens).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            steps.append([float(total) / count, float(norm), count])
        return steps

    return steps_of


@pytest.fixture(scope="session")
def same_steps() -> Callable[..., None]:
    """`(found, expected)`: asserts that steps of `losses_of` are those of `transformers_steps`."""

    def check(found: list[list[Any]], expected: list[list[Any]]) -> None:
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
            assert ours[1] == pytest.approx(theirs[1], rel=1e-4)
            assert ours[2] == theirs[2]

    return check
