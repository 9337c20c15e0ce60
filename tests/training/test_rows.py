"""The data sets of a run, their splits and their order, as the flags ask for them."""

import json

import pytest

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.data.manifest import DatasetFiles
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.training.inputs import read_inputs
from mindspeed_llm.training.rows import order_fact, ordering, say_passes


@pytest.fixture
def read(flags):
    def run(*command):
        settings, architecture = read_settings([*flags, *(str(part) for part in command)])
        return settings, read_inputs(settings, architecture, check_tokenizer=True).rows

    return run


@pytest.fixture
def heard(monkeypatch):
    said = []
    for kind in ("info", "warning"):
        monkeypatch.setattr(
            f"mindspeed_llm.training.rows._log.{kind}", lambda form, *a: said.append(form % a)
        )
    return said


@pytest.fixture
def second(tmp_path, tiny_tokenizer_dir, tiny_sft_data):
    return tiny_sft_data(tmp_path / "second", tiny_tokenizer_dir, rows=10, seed=1)


def test_splits_lie_inside_each_data_set(read, material, second):
    _, rows = read("--data-path", "0.3", material["data"], "0.7", second, "--split", "70,20,10",
                   "--eval-iters", 1)  # fmt: skip
    for part, sizes in ((rows.train, [17, 7]), (rows.validation, [5, 2]), (rows.test, [2, 1])):
        assert [len(member) for member in part.members] == sizes
        assert part.weights == [3, 7]


def test_a_set_without_validation_rows_is_left_out_of_it_loudly(
    read, material, tmp_path, heard, tiny_tokenizer_dir, tiny_sft_data
):
    tiny = tiny_sft_data(tmp_path / "tiny", tiny_tokenizer_dir, rows=2)
    paths = ["--data-path", "1", material["data"], "2", tiny]
    _, rows = read(*paths, "--split", "80,20,0", "--eval-iters", 1)
    assert [len(m) for m in rows.validation.members] == [5] and rows.validation.weights is None
    assert f"{tiny} has no validation rows (--split 80,20,0)" in heard
    with pytest.raises(ConfigError, match="leaves no row for training in .*tiny"):
        read(*paths, "--split", "20,80,0")


def test_unlike_data_sets_are_refused(read, material, tmp_path, tiny_tokenizer_dir, tiny_sft_data):
    other = tiny_sft_data(tmp_path / "other", tiny_tokenizer_dir, template="chatml")
    with pytest.raises(DataError, match="rows and .*other cannot be trained together"):
        read("--data-path", material["data"], other)


def test_rows_beyond_the_length_are_left_out_loudly(read, heard):
    _, rows = read("--seq-length", 20)
    left = 24 - len(rows.train)
    assert 0 < left < 24
    assert f"{left} of 24 training rows are longer than --seq-length 20" in heard[0]


def test_a_blend_says_how_often_it_goes_through_each(read, material, second, heard):
    settings, rows = read("--data-path", "1", material["data"], "1", second)
    say_passes(settings, rows.train, 40)
    assert heard == [f"{material['data']}: 24 rows, gone through 0.83 times",
                     f"{second}: 10 rows, gone through 2.00 times"]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "fact"),
    [
        ([], True),
        (["--no-shuffle"], False),
        (["--padded-samples"], "True, padded"),
        (["--padded-samples", "--no-shuffle"], "False, padded"),
        (["--full-shuffle-instruction-dataset"], "all of 2 epochs together"),
    ],
)
def test_a_run_remembers_its_order(read, flag, fact):
    settings, rows = read(*flag)
    how = ordering(settings, 8, 5)  # 40 samples of 24 rows
    assert order_fact(how, rows.train) == fact
    at = rows.train.order(how)
    drawn = [at(position) for position in range(48)]
    counts = {drawn.count(row) for row in range(24)}
    assert counts == {2}
    assert (drawn[:24] == list(range(24))) == ("--no-shuffle" in flag)


def test_a_model_of_another_size_is_named(read, tmp_path, tiny_hf_model):
    small = tiny_hf_model("llama", tmp_path / "small")  # 131 tokens
    with pytest.raises(DataError, match=r"tokenizer of \d\d\d tokens, the model has 131"):
        read("--load", small)


def test_identity_follows_what_is_trained(read, material, second):
    whole = read()[1].identity
    assert read()[1].identity == whole and whole.endswith(" (24 rows)")
    assert read("--seq-length", 20)[1].identity != whole
    blends = [["1", material["data"], "1", second], ["1", material["data"], "2", second]]
    assert len({read("--data-path", *blend)[1].identity for blend in blends}) == 2


def steps(flags, variants):
    """Runs each command line: its losses, or where it saves, the iteration it began after."""
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
                results.append([run_iteration(job, i, (i - 1) * job.batch_size).loss for i in left])
        except UserError as error:
            results.append(str(error))
        parallel_state.destroy_model_parallel()
    return results


def test_a_blend_is_continued_to_the_bit(run_ranks, flags, material, second, tmp_path):
    saved = str(tmp_path / "out")
    blend = ["--data-path", "0.3", material["data"], "0.7", str(second)]
    more = ["--train-iters", "4"]
    full = ["--full-shuffle-instruction-dataset"]
    plain = [*blend, *more]
    mixed = [*blend, *more, *full]
    half = [*blend, "--train-iters", "2", "--save", saved]
    rest = [*plain, "--load", saved]
    weights = [*rest, "--data-path", "0.4", material["data"], "0.6", str(second)]
    order = [*rest, *full]
    (found,) = run_ranks(1, steps, flags, [plain, mixed, half, rest, weights, order])
    assert len(found[0]) == 4 and found[0] != found[1]
    assert found[2] == 0 and found[3] == found[0][2:]  # not nearly: the same bits
    assert "the data set at --data-path was" in found[4]
    assert "--full-shuffle-instruction-dataset) was True and is all of 32 samples" in found[5]


def test_labels_of_mindspeed_llm_are_announced(read, material, tmp_path, heard, tiny_tokenizer_dir,
                                               tiny_sft_data):  # fmt: skip
    prefix = tiny_sft_data(tmp_path / "theirs", tiny_tokenizer_dir)
    path = DatasetFiles(prefix).manifest
    manifest = json.loads(path.read_text())
    manifest["settings"]["template_compat"] = "mindspeed"
    path.write_text(json.dumps(manifest))
    read("--data-path", prefix)
    assert any("theirs: prepared with --template-compat mindspeed" in said for said in heard)
    heard.clear()
    read("--data-path", material["data"])
    assert not any("template-compat" in said for said in heard)
