"""A run is continued bit-equal at its own layout, and within 1e-6 at any other: context parallel,
interleaved, with uneven stages."""

from __future__ import annotations

import pytest

CP2 = ["--context-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
LAYOUTS = {
    "dp": [],
    "tp": ["--tensor-model-parallel-size", "2"],
    "cp": CP2,
    "vpp": [*PP2, "--num-layers-per-virtual-pipeline-stage", "1"],
    "uneven": [*PP2, "--num-layer-list", "3,1"],
}


def runs(flags, variants):
    """Runs in a rank: each command line in turn, to its end -> [first iteration, losses]."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import Position, run_iteration
    from mindspeed_llm.training.setup import prepare

    results = []
    for variant in variants:
        settings, architecture = read_settings([*flags, *variant])
        inputs = read_inputs(settings, architecture, check_tokenizer=False)
        job = prepare(settings, inputs, torch.device("cpu"))
        start, size = job.start.iteration, job.batch_size
        losses = [run_iteration(job, i + 1, i * size).loss for i in range(start, job.total)]
        if job.save is not None:
            job.save(Position(job.total, job.total * size))
        results.append([start, losses])
        parallel_state.destroy_model_parallel()
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cp", "vpp", "uneven"])
def test_own_layout_and_every_other(run_ranks, flags, tmp_path, name):
    common = ["--use-distributed-optimizer"]
    noisy = [*common, *LAYOUTS[name], "--hidden-dropout", "0.1", "--attention-dropout", "0.1"]
    plain = [*common, *LAYOUTS[name]]
    here, there = str(tmp_path / "noisy"), str(tmp_path / "plain")
    others = [LAYOUTS[other] for other in LAYOUTS if other != name]
    variants = [
        [*noisy, "--train-iters", "4"],
        [*noisy, "--train-iters", "2", "--save", here],
        [*noisy, "--train-iters", "4", "--load", here],
        [*plain, "--train-iters", "4"],
        [*plain, "--train-iters", "2", "--save", there],
        *([*common, *other, "--train-iters", "4", "--load", there] for other in others),
    ]
    for whole, _, again, expected, _, *moved in run_ranks(2, runs, flags, variants, timeout=600):
        assert whole[0] == 0 and again == [2, whole[1][2:]]
        for start, losses in moved:
            assert start == 2 and losses == pytest.approx(expected[1][2:], rel=1e-6)
    (alone,) = run_ranks(1, runs, flags, [[*common, "--train-iters", "4", "--load", there]])
    assert alone[0][1] == pytest.approx(expected[1][2:], rel=1e-6)


@pytest.fixture
def flags(tmp_path_factory, tiny_chat_model, tiny_sft_data, tiny_tokenizer_dir):
    prefix = tiny_sft_data(tmp_path_factory.mktemp("sft") / "packs", tiny_tokenizer_dir,
                           longest=30, capacity=32)  # fmt: skip
    return [
        "--load", str(tiny_chat_model("gemma2")), "--data-path", str(prefix), "--seq-length", "32",
        "--micro-batch-size", "1", "--global-batch-size", "4", "--lr", "1e-3",
        "--lr-decay-style", "constant",
    ]  # fmt: skip
