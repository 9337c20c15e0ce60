"""A run is continued exactly, refused when it cannot be, or started anew from its weights."""

import pytest


def runs(flags, variants):
    """Runs in a rank: each command line in turn, to its end -> losses, or the error."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.errors import UserError
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import run_iteration, train
    from mindspeed_llm.training.setup import prepare

    results = []
    for variant in variants:
        try:
            settings, architecture = read_settings([*flags, *variant])
            job = prepare(settings, read_inputs(settings, architecture, check_tokenizer=False),
                          torch.device("cpu"))  # fmt: skip
            if job.save is not None:
                train(job)
                results.append(job.start.iteration)
            else:
                left = range(job.start.iteration + 1, job.total + 1)
                losses = [run_iteration(job, i, (i - 1) * job.batch_size).loss for i in left]
                results.append([job.start.iteration, losses, float(torch.rand(()))])
        except (UserError, OSError) as error:
            results.append(str(error))
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
    return results


DROPOUT = ["--hidden-dropout", "0.1", "--attention-dropout", "0.1"]


def interrupted(common, saved):
    """Four iterations at once, and two and two."""
    return [
        [*common, "--train-iters", "4"],
        [*common, "--train-iters", "2", "--save", saved],
        [*common, "--train-iters", "4", "--load", saved],
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_continuing_is_bit_equal(
    run_ranks, flags, tmp_path, tiny_sft_data, tiny_tokenizer_dir, world_size
):
    packs = tiny_sft_data(tmp_path / "packs", tiny_tokenizer_dir, capacity=60, multiple=4)
    runs_of = {
        1: {
            "bf16": ["--bf16"],
            # 8 rows, so that the second step is in two epochs
            "packed": ["--data-path", str(packs), "--seq-length", "60", "--global-batch-size", "6"],
        },
        2: {
            "sharded": ["--use-distributed-optimizer"],
            "tp": ["--tensor-model-parallel-size", "2"],
        },
    }[world_size]
    variants = [
        variant
        for name, layout in runs_of.items()
        for variant in interrupted([*layout, *DROPOUT], str(tmp_path / name))
    ]
    for results in run_ranks(world_size, runs, flags, variants):
        for at, name in enumerate(runs_of):
            (start, whole, noise), _, again = results[3 * at : 3 * at + 3]
            # not nearly: the same bits, and those of the generators too
            assert start == 0 and again == [2, whole[2:], noise], name


def test_what_cannot_be_continued_is_refused(run_ranks, flags, material, tmp_path):
    saved = str(tmp_path / "out")
    load = ["--load", saved]
    variants = [
        ["--train-iters", "2", "--save", saved],
        [*load, "--seed", "7", "--adam-beta2", "0.95"],
        [*load, "--global-batch-size", "4"],
        [*load, "--lr", "1e-4"],
        [*load, "--lr", "1e-4", "--override-opt-param-scheduler", "--train-iters", "3"],
        [*load, "--finetune", "--seed", "7", "--no-load-optim", "--no-load-rng"],
        [*load, "--use-distributed-optimizer"],
        [*load, "--train-iters", "2"],
        [*load, "--hidden-dropout", "0.1"],
        ["--tensor-model-parallel-size", "3"],
        ["--save", f"{material['data']}_packed_manifest.json/out"],
        ["--log-dir", saved, "--profile", "--profile-step-start", "1", "--profile-step-end", "2",
         "--profile-ranks", "0", "3"],
        ["--log-dir", saved, "--profile", "--profile-step-start", "1", "--profile-step-end", "3",
         "--exit-interval", "2"],
    ]  # fmt: skip
    (found,) = run_ranks(1, runs, flags, variants)
    assert found[0] == 0
    assert "--seed was 1234 and is 7; --adam-beta2 was 0.999 and is 0.95" in found[1]
    assert "--finetune" in found[1]
    assert "--global-batch-size was 8 and is 4" in found[2]
    assert "--lr is 0.0001, the checkpoint has 0.001" in found[3]
    assert found[4][0] == 2 and len(found[4][1]) == 1
    assert found[5][0] == 0 and len(found[5][1]) == 3
    assert "optimizer" in found[6] and "DistributedOptimizer" in found[6]
    assert found[7][0] == 2 and found[7][1] == []  # nothing is left to do
    assert "--hidden-dropout was 0.0 and is 0.1" in found[8]
    assert "--tensor-model-parallel-size 3" in found[9]
    assert "Not a directory" in found[10]  # before the first iteration
    assert "--profile-ranks 0 3: the ranks of this run are 0 to 0" in found[11]
    assert "iterations 2 to 3 are not all among those of this run, 1 to 2" in found[12]


def warnings_of(flags, variants):
    """Runs in a rank: warnings while each command line is prepared."""
    import logging

    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import train
    from mindspeed_llm.training.setup import prepare

    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told[-1].append(record.getMessage())
    logging.getLogger("mindspeed_llm").addHandler(handler)
    for variant in variants:
        told.append([])
        settings, architecture = read_settings([*flags, *variant])
        inputs = read_inputs(settings, architecture, check_tokenizer=False)
        train(prepare(settings, inputs, torch.device("cpu")))
        parallel_state.destroy_model_parallel()
    return told


def test_a_second_run_in_the_directory_of_a_first_says_so(run_ranks, flags, tmp_path):
    out = tmp_path / "out"
    common = ["--save", str(out), "--save-interval", "1", "--keep-last", "1"]
    variants = [
        [*common, "--train-iters", "3"],
        [*common, "--train-iters", "4", "--load", str(out)],
        [*common, "--train-iters", "2"],
    ]
    (told,) = run_ranks(1, warnings_of, flags, variants)
    assert told[:2] == [[], []]
    assert [text for text in told[2] if f"--save {out} has a run up to iteration 4" in text]
    # and the checkpoint that it left is there, beside the other run's
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "2"
    kept = ["iter_0000002", "iter_0000003", "iter_0000004"]  # the second run went on from 3
    assert sorted(p.name for p in out.glob("iter_*")) == kept
