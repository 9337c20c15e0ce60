"""Every supported megatron-core: all patches apply, revert, and a tiny GPTModel trains the same.

The installed version is always checked. MINDSPEED_LLM_MCORE_PATHS=/a:/b names directories with
others; each is put in front of PYTHONPATH of the processes that check it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "distributed" / "tiny_gpt.py"
NEWER = ("0.17.1", "0.18.2", "0.19.2")  # need Python 3.12
EXTRA = [p for p in os.environ.get("MINDSPEED_LLM_MCORE_PATHS", "").split(":") if p]
LOSSES = [4.946463584899902, 4.965662479400635, 4.973592758178711]
NORMS = [1.7995406571374468, 2.041580457878457, 1.6985004178266485]

# Behind the training of the tiny model, whose `main` it keeps: a process of one rank.
APPLY_AND_REVERT = """

def on_paper(device):
    # States of the register for a device that need not be here, but for the vendor's switch.
    import importlib

    from mindspeed_llm.patches.engine import Engine
    from mindspeed_llm.patches.registry import REGISTER

    other = Engine([p for p in REGISTER if p.kind != "switch"])
    try:
        other.apply(device)
        for name in other.modules():
            importlib.import_module(name)
        return sorted({o.state for o in other.report().outcomes if device in o.patch.devices
                       and not o.reason.startswith("not for megatron-core")
                       and not o.reason.endswith("is not installed")})
    finally:
        other.revert()


def patched_again():
    import importlib
    import sys

    import torch
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

    applied = [o.patch for o in report.outcomes
               if o.state == "applied" and "*" not in o.patch.target]
    patched = {t: value(t) for p in applied for t in p.targets}
    engine.revert()
    reverted = {t: value(t) for t in patched}
    pristine, own = torch.nn.Module.cuda, "cuda" in vars(torch.Tensor)
    left = [n for n, m in list(sys.modules.items()) if n.startswith("megatron.")
            and vars(m).get("torch", torch) not in (torch, sys.modules.get(n + ".torch"))]
    left += [f"{n}.{key}" for n, m in list(sys.modules.items()) if n.startswith("megatron.")
             for key, held in list(vars(m).items()) if inspect.isfunction(held)
             and held.__module__.startswith("mindspeed_llm.")]
    elsewhere = {device: on_paper(device) for device in ("npu", "cuda")}
    engine.apply()
    again = {t: value(t) for t in patched}
    return {
        "version": report.mcore_version, "left": left, "applied": len(patched),
        "armed": [o.patch.target for o in report.outcomes if o.state == "armed"],
        "skipped": {o.patch.target: o.reason for o in report.outcomes if o.state == "skipped"},
        "changed": sum(patched[t] is not reverted[t] for t in patched),
        "again": [t for t in again if again[t] is reverted[t] and patched[t] is not reverted[t]],
        "pristine": pristine.__module__, "torch": torch.nn.Module.cuda is not pristine,
        "own": (own, "cuda" in vars(torch.Tensor)), "elsewhere": elsewhere,
    }


train = main


def main(*jobs):
    patches = patched_again()
    return train(*jobs) | {"patches": patches}
"""


def _without(version):
    """This version of megatron-core, skipped with the reason."""
    how = "PYTHON=python3.12 bash tests/run.sh tests/contract"
    why = f"megatron-core {version} needs Python 3.12: {how}"
    return pytest.param(version, marks=pytest.mark.skipif(sys.version_info < (3, 12), reason=why))


_SKIPPED = list(map(_without, NEWER)) if sys.version_info < (3, 12) else []


@pytest.fixture(params=["installed", *EXTRA, *_SKIPPED])
def env(request):
    """Environment variables under which this version of megatron-core is imported."""
    if request.param == "installed":
        return {}
    assert (Path(request.param) / "megatron" / "core").is_dir(), request.param
    return {"PYTHONPATH": request.param + os.pathsep + os.environ.get("PYTHONPATH", "")}


def test_patches_training_and_resuming_on_this_version(run_ranks, env, tmp_path):
    source, path = SOURCE.read_text(encoding="utf-8"), str(tmp_path / "saved")
    jobs = [{"tp": 2}, {"pp": 2}, {"tp": 2, "sp": True}, {"overlap": True}, {"save": path},
            {"load": path, "steps": 2, "tp": 2}]  # fmt: skip
    *layouts, saved, resumed = run_ranks(2, source, *jobs, env=env, timeout=240)[-1]["results"]
    for job, result in zip(jobs, layouts, strict=False):
        _check_trained(result, job)
        assert all(result["attention"]), job  # a layer's kind goes by its number in the model
    _check_resumed(resumed, saved["next"])

    jobs = [{}, {"load": path, "steps": 2}]  # by a process that has not written it
    (alone,) = run_ranks(1, source + APPLY_AND_REVERT, *jobs, env=env, timeout=180)
    _check_patched(alone["patches"])
    trained, resumed = alone["results"]
    _check_trained(trained, "alone")
    _check_resumed(resumed, saved["next"])
    assert alone["file"].startswith(env.get("PYTHONPATH", "").split(os.pathsep)[0])


def _check_patched(result):
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
    assert result["pristine"] == "torch.nn.modules.module" and result["torch"]
    assert result["own"] == [False, True]
    assert result["elsewhere"] == {"npu": ["applied"], "cuda": ["applied"]}


def _check_trained(result, job):
    assert result["losses"] == pytest.approx(LOSSES, rel=1e-5), job
    assert result["norms"] == pytest.approx(NORMS, rel=1e-5), job


def _check_resumed(result, uninterrupted):
    assert result["losses"] == pytest.approx(uninterrupted["losses"], rel=1e-5)
    assert result["norms"] == pytest.approx(uninterrupted["norms"], rel=1e-5)
