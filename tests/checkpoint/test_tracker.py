"""What lies below a root is found by Megatron-LM's names."""

import pytest

from mindspeed_llm.checkpoint.tracker import TRACKER, find_foreign, iteration_name, read_tracker
from mindspeed_llm.errors import CheckpointError


def test_names_of_iterations():
    assert iteration_name(120) == "iter_0000120" and iteration_name(None) == "release"


@pytest.mark.parametrize(("word", "iteration"), [("release", None), (" 120\n", 120)])
def test_tracker(tmp_path, word, iteration):
    (tmp_path / TRACKER).write_text(word)
    assert read_tracker(tmp_path) == iteration


@pytest.mark.parametrize("word", ["", "../..", "-1", "1e3", "9" * 40, "\x00"])
def test_tracker_that_says_nonsense(tmp_path, word):
    (tmp_path / TRACKER).write_text(word)
    with pytest.raises(CheckpointError, match="expected 'release' or a number"):
        find_foreign(tmp_path)


@pytest.mark.parametrize(("files", "kind"), [
    ((".metadata", "metadata.json"), "torch_dist"),
    (("mp_rank_00/model_optim_rng.pt",), "mp_rank"),
    ((".metadata", "metadata.json", "MANIFEST.json"), None),
    (("metadata.json",), None),
    ((), None),
])  # fmt: skip
def test_kinds(tmp_path, files, kind):
    directory = tmp_path / "iter_0000120"
    directory.mkdir()
    (tmp_path / TRACKER).write_text("120")
    for name in files:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch()
    for root in (tmp_path, directory):
        found = find_foreign(root)
        assert (found and found.kind) == kind
        if found is not None:
            assert (found.path, found.root, found.iteration) == (directory, tmp_path, 120)
            with pytest.raises(CheckpointError, match="does not say what its model is"):
                _ = found.hf_dir
    if kind:
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "config.json").write_text("{}")
        assert find_foreign(tmp_path).hf_dir == tmp_path / "hf"
