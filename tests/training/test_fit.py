"""Rows that do not fit a run are made to before it begins, and the run goes on exactly."""

import json

import pytest
import torch

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.prepare import prepare
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.training.fit import with_fitted_data
from mindspeed_llm.training.raw import with_prepared_data

TALKS = [
    {"instruction": f"Question {n}?", "input": "", "output": f"Answer {n}.",
     "histories": [[f"Earlier {i} of {n}?", "Yes, so it is."] for i in range(n % 5)]}
    for n in range(40)
]  # fmt: skip
MAP = '{"history": "histories"}'


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_tokenizer_dir):
    """Conversations, and the prefix they are prepared to without a length."""
    place = tmp_path_factory.mktemp("fit")
    (place / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALKS))
    prepare(PreprocessConfig(
        input=(str(place / "talks.jsonl"),), tokenizer_name_or_path=tiny_tokenizer_dir,
        output_prefix=place / "set", prompt_type="gemma", map_keys=json.loads(MAP),
    ))  # fmt: skip
    return place


def resolved(flags, *more):
    settings, _ = read_settings([*flags, *(str(part) for part in more)])
    return with_fitted_data(with_prepared_data(settings)).data


def test_files_and_data_sets_are_made_to_fit_alike(flags, source):
    how = ["--seq-length", 64, "--truncation", "oldest-turns", "--pack"]
    raw = resolved(flags, *how, "--data-path", source / "talks.jsonl", "--prompt-type", "gemma",
                   "--map-keys", MAP)  # fmt: skip
    data = resolved(flags, *how, "--data-path", source / "set")
    rows = [SFTDataset(d.prefixes[0], tokenizer_sha256=None) for d in (raw, data)]
    assert rows[0].manifest.packing == rows[1].manifest.packing is not None
    for one, other in zip(*rows, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["labels"], other["labels"])
    assert str(source / ".mindspeed_llm_cache" / "set-") in data.prefixes[0]


def test_each_of_a_blend_is_made_to_fit(flags, source, material, tmp_path):
    data = resolved(flags, "--pack", "--pad-to-multiple-of", 4, "--data-cache-path", tmp_path,
                    "--data-path", "1", source / "set", "2", material["data"])  # fmt: skip
    assert data.weights == (1, 2) and data.neat_pack is False
    packings = [SFTDataset(prefix, tokenizer_sha256=None).packing for prefix in data.prefixes]
    assert {(p.capacity, p.multiple) for p in packings} == {(32, 4)}


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        (["--pack", "--variable-seq-lengths"], ConfigError, "no effect with --pack"),
        (["--truncation", "error"], DataError, "of 40 rows have more tokens than --seq-length 32"),
        (["--data-cache-path", "x"], ConfigError, "--data-cache-path is for preparing"),
    ],
)
def test_what_cannot_be_is_said(flags, source, more, kind, words):
    with pytest.raises(kind, match=words):
        resolved(flags, "--data-path", source / "set", *more)


def losses(flags, variants):
    """Per-step loss of each command line, or where it saves, nothing."""
    import torch
    from megatron.core import parallel_state

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.fit import with_fitted_data
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import run_iteration, train
    from mindspeed_llm.training.setup import prepare

    results = []
    for variant in variants:
        settings, architecture = read_settings([*flags, *variant])
        settings = with_fitted_data(settings)
        job = prepare(settings, read_inputs(settings, architecture, check_tokenizer=False),
                      torch.device("cpu"))  # fmt: skip
        if job.save is not None:
            results.append(train(job))
        else:
            left = range(job.start.iteration + 1, job.total + 1)
            results.append([run_iteration(job, i, (i - 1) * job.batch_size).loss for i in left])
        parallel_state.destroy_model_parallel()
    return results


def test_packed_for_the_run_it_trains_as_packed_before_and_goes_on_to_the_bit(
    run_ranks, flags, source, tiny_tokenizer_dir, tmp_path
):
    how = ["--truncation", "oldest-turns", "--seq-length", "64"]
    prepare(PreprocessConfig(
        input=(str(source / "talks.jsonl"),), tokenizer_name_or_path=tiny_tokenizer_dir,
        output_prefix=tmp_path / "packed", prompt_type="gemma", map_keys=json.loads(MAP),
        pack=True, seq_length=64, truncation="oldest-turns",
    ))  # fmt: skip
    batch = [*how, "--global-batch-size", "2", "--micro-batch-size", "1"]
    fitted = [*batch, "--pack", "--data-path", str(source / "set")]
    before = [*batch, "--neat-pack", "--data-path", str(tmp_path / "packed")]
    saved = str(tmp_path / "out")
    half = [*fitted, "--train-iters", "1", "--save", saved]
    rest = [*fitted, "--load", saved]
    (found,) = run_ranks(1, losses, flags, [fitted, before, half, rest])
    assert len(found[0]) == 3 and found[0] == found[1]
    assert found[2] == 0 and found[3] == found[0][1:]
