"""megatron-core's own torch_dist checkpoints with the distributed optimizer, into other layouts."""

from __future__ import annotations

import pytest


def test_a_fresh_process_resumes_in_another_layout(train, same, tmp_path):
    path = str(tmp_path / "dp2")
    (saved,) = train(2, {"save": path})
    two = {"load": path, "steps": 2}
    for result in train(2, two | {"tp": 2}, two | {"pp": 2}, two):
        same(result, saved["next"])
    (alone,) = train(1, two)
    same(alone, saved["next"])


@pytest.mark.slow
def test_a_fresh_process_resumes_shards_as_they_are(train, same, tmp_path):
    path = str(tmp_path / "dp2")
    (saved,) = train(2, {"save": path, "sharding": "dp_reshardable"})
    (result,) = train(2, {"load": path, "steps": 2, "sharding": "dp_reshardable"})
    same(result, saved["next"])
