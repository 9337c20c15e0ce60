"""Which checkpoints stay: the latest, those at intervals, the best, and what others stand on."""

import pytest

from mindspeed_llm.checkpoint.retention import BEST, Retention, retain


@pytest.mark.parametrize(
    ("how", "best", "doomed"),
    [
        ({}, 2, []),
        ({"last": 2}, None, [2, 4, 6]),
        ({"last": 2}, 4, [2, 6]),
        ({"last": 9}, None, []),
        ({"interval": 4}, None, [2, 6]),
        ({"interval": 4, "last": 3}, None, [2]),
        ({"interval": 100}, None, [2, 4, 6, 8]),
    ],
)
def test_the_latest_always_stays(how, best, doomed):
    assert Retention(**how).doomed([10, 2, 4, 8, 6], 10, best) == doomed


@pytest.mark.parametrize("how", [{"last": 1}, {"last": 2}, {"interval": 100}])
def test_what_was_just_written_stays_beside_later_ones_of_another_run(how):
    # a run that began again at 2, in a directory that has been as far as 10
    assert 4 not in Retention(**how).doomed([10, 2, 4, 8], 4, None)
    assert not {8, 10} & set(Retention(**how).doomed([10, 2, 4, 8], 4, None))


def test_directories_go_whole_and_others_stay(tmp_path):
    for name in ("iter_0000002", "iter_0000004", "iter_0000006", "release", "iter_0000002.old-ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "MANIFEST.json").write_text("{}")
    spared = tmp_path / "link"
    spared.symlink_to(tmp_path / "iter_0000004")
    retain(tmp_path, Retention(last=1, spared=[spared]), 6, best=None)
    left = sorted(p.name for p in tmp_path.iterdir() if p.name != "link")
    assert left == ["iter_0000002.old-ab", "iter_0000004", "iter_0000006", "release"]
    assert not (tmp_path / BEST).exists()
    retain(tmp_path, Retention(), 6, best=4)
    assert (tmp_path / BEST).read_text() == "4"
    retain(tmp_path, Retention(), 6, best=3)  # saved elsewhere, or not at all
    assert (tmp_path / BEST).read_text() == "4"
