"""Evaluation, checkpoints and records come when they should; nothing is saved behind a failure."""

import json
from pathlib import Path

import pytest


def run_and_fail(flags):
    """Runs in a rank: four good iterations, then weights that give no finite loss."""
    import torch

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.errors import TrainingError
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import Position, train
    from mindspeed_llm.training.setup import prepare

    settings, architecture = read_settings(flags)
    job = prepare(settings, read_inputs(settings, architecture, check_tokenizer=False),
                  torch.device("cpu"))  # fmt: skip
    train(job)
    job.start, job.total = Position(4, 32), 6
    with torch.no_grad():
        next(iter(job.replica.model.parameters())).fill_(float("nan"))
    try:
        train(job)
    except TrainingError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def weights_only_at_intervals():
    return ["--train-iters", "4", "--save-interval", "3", "--eval-interval", "2",
            "--eval-iters", "9", "--split", "70,20,10"]  # fmt: skip


def test_a_run_and_its_failure(run_ranks, flags, tmp_path, weights_only_at_intervals):
    save = tmp_path / "out"
    command = [*flags, *weights_only_at_intervals, "--save", str(save)]
    (message,) = run_ranks(1, run_and_fail, command)
    assert "iteration 5: loss is nan" in message
    assert "the last checkpoint is iteration 4" in message and "--lr" in message
    assert sorted(p.name for p in save.glob("iter_*")) == ["iter_0000003", "iter_0000004"]
    assert (save / "latest_checkpointed_iteration.txt").read_text() == "4"
    lines = [json.loads(line) for line in Path(save, "logs/train.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    checks = [line for line in lines if "validation_loss" in line]
    assert [line["iteration"] for line in checks] == [2, 4]
    assert len({line["validation_supervised_tokens"] for line in checks}) == 1
    assert sum("test_loss" in line for line in lines) == 1
    assert all(0 < line["supervised_share"] < 1 for line in lines if "loss" in line)
    assert [line["consumed_samples"] for line in lines if "loss" in line] == [8, 16, 24, 32]


def not_finite(flags, out):
    """Runs in each of two ranks: rank 1 alone has bad numbers in the 6th batch, or from then on."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.errors import TrainingError
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import train
    from mindspeed_llm.training.setup import prepare

    def run(name, policy, bad, *more):
        command = [*flags, "--on-non-finite", policy, "--save", f"{out}/{name}", *more]
        settings, architecture = read_settings(command)
        inputs = read_inputs(settings, architecture, check_tokenizer=False)
        job = prepare(settings, inputs, torch.device("cpu"))
        calls = 0

        def poison(module, _inputs, output):
            nonlocal calls
            calls += module.training
            per_batch = settings.train.batch_size(2) // 4
            if module.training and torch.distributed.get_rank() == 1:
                if (calls - 1) // per_batch + 1 in bad:
                    return output * float("nan")
            return output

        embedding = job.replica.model[0].module.embedding
        embedding.register_forward_hook(poison)
        try:
            problem = str(train(job))
        except TrainingError as error:
            problem = str(error)
        weights = torch.cat([p.detach().flatten() for p in job.replica.model.parameters()])
        parallel_state.destroy_model_parallel()
        return [problem, float(weights.double().sum()), bool(weights.isfinite().all())]

    forever = list(range(6, 999))
    return {
        "skip": run("skip", "skip", [6], "--train-iters", "8"),
        "skip forever": run("forever", "skip", forever, "--train-iters", "40"),
        "rollback": run("back", "rollback", [6], "--train-iters", "8", "--save-interval", "4"),
        "rollback forever": run(
            "always", "rollback", forever, "--train-iters", "8", "--save-interval", "5"
        ),
        "too early": run("early", "rollback", [2], "--train-iters", "3", "--save-interval", "3"),
        "stop": run("stop", "stop", [6], "--train-iters", "8", "--save-interval", "4"),
    }


def lines_of(directory):
    return [json.loads(line) for line in Path(directory, "logs/train.jsonl").open()]


def test_numbers_that_are_not_finite_are_met_alike_on_all_ranks(run_ranks, flags, tmp_path):
    first, second = run_ranks(2, not_finite, flags, str(tmp_path), timeout=300)
    assert first == second
    assert all(finite for _, _, finite in first.values())

    assert first["skip"][0] == "0"
    lines = lines_of(tmp_path / "skip")
    assert [line["iteration"] for line in lines if line.get("event") == "skipped"] == [6]
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 7, 8]
    assert lines[-1]["consumed_samples"] == 64

    assert "iteration 16: " in first["skip forever"][0] and "11 batches" in first["skip forever"][0]

    assert first["rollback"][0] == "0"
    lines = lines_of(tmp_path / "back")
    (event,) = [line for line in lines if line.get("event") == "rollback"]
    assert (event["iteration"], event["from"]) == (4, 6)
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, 9))
    consumed = {line["iteration"]: line["consumed_samples"] for line in lines if "loss" in line}
    assert (consumed[4], consumed[5], consumed[8]) == (32, 56, 80)  # the 5th and 6th are left out

    assert "again after 3 rollbacks" in first["rollback forever"][0]
    assert Path(tmp_path, "always/latest_checkpointed_iteration.txt").read_text() == "5"
    assert "iteration 2: " in first["too early"][0]
    assert "--save has nothing yet to go back to" in first["too early"][0]
    assert "iteration 6: loss is nan" in first["stop"][0]
    assert "the last checkpoint is iteration 4" in first["stop"][0]


def evaluated(flags, out):
    """Runs in a rank: evaluations that get worse at a learning rate of nothing but decay."""
    import torch

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.errors import TrainingError
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import train
    from mindspeed_llm.training.setup import prepare

    settings, architecture = read_settings([*flags, "--save", out])
    inputs = read_inputs(settings, architecture, check_tokenizer=False)
    job = prepare(settings, inputs, torch.device("cpu"))
    code = train(job)
    with torch.no_grad():
        next(iter(job.replica.model.parameters())).view(-1)[0] = float("inf")
    job.start, job.total = type(job.start)(job.total, 0), job.total + 1
    job.control = type(job.control)(on_non_finite="skip")
    job.log_dir = None
    try:
        train(job)
    except TrainingError as error:
        return [code, str(error)]
    return [code, ""]


def test_the_best_is_kept_and_patience_ends_a_run(run_ranks, flags, tmp_path):
    out = tmp_path / "out"
    more = ["--train-iters", "40", "--lr", "0.05", "--eval-interval", "1", "--eval-iters", "9",
            "--split", "80,20,0", "--early-stop-patience", "3", "--save-best",
            "--save-interval", "1", "--keep-last", "1"]  # fmt: skip
    ((code, poisoned),) = run_ranks(1, evaluated, [*flags, *more], str(out))
    assert code == 0
    lines = [line for line in lines_of(out) if "validation_loss" in line]
    losses = [line["validation_loss"] for line in lines]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 3 < 40
    assert (out / "best_checkpointed_iteration.txt").read_text() == str(best)
    kept = sorted(int(path.name[5:]) for path in out.glob("iter_*"))
    assert kept == [best, len(losses)]
    for line in lines:
        turns, counts = line["validation_turn_losses"], line["validation_turn_tokens"]
        assert set(turns) == set(counts)
        assert sum(counts.values()) == line["validation_supervised_tokens"]
        mean = sum(turns[t] * counts[t] for t in turns) / sum(counts.values())
        assert mean == pytest.approx(line["validation_loss"], rel=1e-6)
    # a run whose weights are bad cannot write a checkpoint of them
    assert "is not finite, so no checkpoint of it was written" in poisoned
    assert sorted(int(path.name[5:]) for path in out.glob("iter_*")) == kept
