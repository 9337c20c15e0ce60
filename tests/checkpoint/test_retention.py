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
    assert Retention(**how).doomed([10, 2, 4, 8, 6], best) == doomed


def test_directories_go_whole_and_others_stay(tmp_path):
    for name in ("iter_0000002", "iter_0000004", "iter_0000006", "release", "iter_0000002.old-ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "MANIFEST.json").write_text("{}")
    spared = tmp_path / "link"
    spared.symlink_to(tmp_path / "iter_0000004")
    retain(tmp_path, Retention(last=1, spared=[spared]), best=None)
    left = sorted(p.name for p in tmp_path.iterdir() if p.name != "link")
    assert left == ["iter_0000002.old-ab", "iter_0000004", "iter_0000006", "release"]
    assert not (tmp_path / BEST).exists()
    retain(tmp_path, Retention(), best=4)
    assert (tmp_path / BEST).read_text() == "4"
