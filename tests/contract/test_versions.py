"""Every supported megatron-core: all patches apply, revert, and a tiny GPTModel trains the same.

The installed version is always checked. MINDSPEED_LLM_MCORE_PATHS=/a:/b names directories with
others; each is put in front of PYTHONPATH of the processes that check it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "distributed" / "tiny_gpt.py"
EXTRA = [p for p in os.environ.get("MINDSPEED_LLM_MCORE_PATHS", "").split(":") if p]
LOSSES = [4.946463584899902, 4.965662479400635, 4.973592758178711]
NORMS = [1.7995406571374468, 2.041580457878457, 1.6985004178266485]

APPLY_AND_REVERT = """
import importlib, inspect, json, sys
import torch
pristine = torch.nn.Module.cuda
import mindspeed_llm.megatron_adaptor
from mindspeed_llm.patches import engine
for name in engine.modules():
    importlib.import_module(name)
report = engine.report()
def value(target):
    module, path = target.split(":")
    owner = sys.modules[module]
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part)
    return inspect.getattr_static(owner, path.split(".")[-1])
applied = [o.patch for o in report.outcomes if o.state == "applied" and "*" not in o.patch.target]
patched = {t: value(t) for p in applied for t in p.targets}
engine.revert()
reverted = {t: value(t) for t in patched}
left = [n for n, m in list(sys.modules.items()) if n.startswith("megatron.")
        and vars(m).get("torch", torch) is not torch]
changed = sum(patched[t] is not reverted[t] for t in patched)
engine.apply()
again = {t: value(t) for t in patched}
print(json.dumps({
    "version": report.mcore_version, "armed": [o.patch.target for o in report.outcomes
                                               if o.state == "armed"],
    "skipped": {o.patch.target: o.reason for o in report.outcomes if o.state == "skipped"},
    "applied": len(patched), "changed": changed, "left": left, "again": [
        t for t in again if again[t] is reverted[t] and patched[t] is not reverted[t]],
    "torch": torch.nn.Module.cuda is not pristine, "own": "cuda" in vars(torch.Tensor)}))
"""


@pytest.fixture(params=["installed", *EXTRA])
def env(request):
    """Environment variables under which this version of megatron-core is imported."""
    if request.param == "installed":
        return {}
    assert (Path(request.param) / "megatron" / "core").is_dir(), request.param
    return {"PYTHONPATH": request.param + os.pathsep + os.environ.get("PYTHONPATH", "")}


def test_every_patch_applies_and_reverts(env):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", APPLY_AND_REVERT],
        capture_output=True,
        text=True,
        env={**os.environ, "DEVICE": "cpu", **env},
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["armed"] == result["left"] == result["again"] == []
    assert result["applied"] >= 15
    # a bool may be what it was to be already; everything else is another object
    assert result["changed"] >= result["applied"] - 1
    assert all(
        reason
        in (
            "not for cpu",
            f"not for megatron-core {result['version']}",
            "megatron.training is not installed",
            "megatron.legacy is not installed",
        )
        for reason in result["skipped"].values()
    )
    assert result["torch"] and result["own"]


def test_a_tiny_model_trains_the_same(run_ranks, env):
    (alone,) = run_ranks(1, SOURCE.read_text(encoding="utf-8"), {}, env=env, timeout=180)
    assert alone["results"][0]["losses"] == pytest.approx(LOSSES, rel=1e-5)
    assert alone["results"][0]["norms"] == pytest.approx(NORMS, rel=1e-5)
    first = env.get("PYTHONPATH", "").split(os.pathsep)[0]
    assert alone["file"].startswith(first)


def test_layouts_and_resuming_on_this_version(run_ranks, env, tmp_path):
    source, path = SOURCE.read_text(encoding="utf-8"), str(tmp_path / "saved")
    jobs = [{"tp": 2}, {"pp": 2}, {"tp": 2, "sp": True}, {"overlap": True}, {"save": path}]
    *layouts, saved = run_ranks(2, source, *jobs, env=env, timeout=240)[-1]["results"]
    for job, result in zip(jobs, layouts, strict=False):
        assert result["losses"] == pytest.approx(LOSSES, rel=1e-5), job
        assert result["norms"] == pytest.approx(NORMS, rel=1e-5), job
        assert all(result["attention"]), job  # a layer's kind goes by its number in the model
    resumed = run_ranks(2, source, {"load": path, "steps": 2, "tp": 2}, env=env, timeout=240)
    after = resumed[-1]["results"][0]
    assert after["losses"] == pytest.approx(saved["next"]["losses"], rel=1e-5)
    assert after["norms"] == pytest.approx(saved["next"]["norms"], rel=1e-5)
