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
    from mindspeed_llm.training.loop import train
    from mindspeed_llm.training.setup import prepare

    settings, architecture = read_settings(flags)
    job = prepare(settings, read_inputs(settings, architecture, check_tokenizer=False),
                  torch.device("cpu"))  # fmt: skip
    train(job)
    job.start, job.total = 4, 6
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
