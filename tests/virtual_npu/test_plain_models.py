"""GPTModels of megatron-core's own specifications after the one import: on virtual NPUs every layer
runs on the fused operators, and the losses are the CPU's, for every supported megatron-core."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import CPU_PYTHON, HERE, LAYERS, ROOT, by_run, count, ran_in_every_layer

OLDER = [p for p in os.environ.get("MINDSPEED_LLM_MCORE_PATHS", "").split(":") if p]
DENSE = {"name": "dense"}
PACKED = {"name": "packed", "packed": True}
BF16 = {"name": "bf16", "bf16": True}
GEMMA = {"name": "gemma", "config": {"layernorm_zero_centered_gamma": True, "qk_layernorm": True,
                                     "bias_activation_fusion": False},
         "spec": {"qk_layernorm": True}}  # fmt: skip
EXPERTS = {"name": "experts", "config": {"num_moe_experts": 4, "moe_router_topk": 2,
                                         "moe_ffn_hidden_size": 64},
           "spec": {"num_experts": 4}}  # fmt: skip
SPLIT = {"name": "split", "tp": 2, "sp": True}


def start(device, folder, jobs, *, ranks=1, core=None):
    """(results by name, journal of rank 0 by name)"""
    python = sys.executable if device == "npu" else CPU_PYTHON
    name = f"{device}-{Path(core or 'installed').name}-{ranks}"
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (core, str(ROOT)))),
        "DEVICE": device,
        "VIRTUAL_NPU": str(ranks) if device == "npu" else "0",
        "VIRTUAL_NPU_JOURNAL": str(folder / name),
        "MINDSPEED_LLM_REQUIRE_FUSED": "1",
    }
    command = [python, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", str(ranks), str(HERE / "plain_models.py"), device,
               str(folder / f"{name}.json"), json.dumps(jobs)]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=folder, text=True, capture_output=True, timeout=600,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    results = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    lines = folder / f"{name}.0.jsonl"
    calls = map(json.loads, lines.read_text().splitlines()) if lines.is_file() else []
    return results, by_run(calls)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results by device, and the journal of the NPU, of the installed megatron-core."""
    folder = tmp_path_factory.mktemp("plain")
    alone = [DENSE, PACKED, BF16, GEMMA, EXPERTS]
    cpu, _ = start("cpu", folder, alone)
    npu, journal = start("npu", folder, alone)
    split, calls = start("npu", folder, [SPLIT], ranks=2)
    return {"cpu": cpu, "npu": npu | split, "journal": journal | calls, "folder": folder}


@pytest.mark.parametrize("name", ["dense", "packed", "gemma", "experts", "split"])
def test_losses_are_the_cpus(name, found):
    expected = found["cpu"]["dense" if name in ("packed", "split") else name]
    npu = found["npu"][name]
    assert npu["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    # Gradients of the same weights. Those of later steps are not: where a gradient is next to
    # nothing, Adam's first step goes a whole learning rate by its sign, which rounding decides.
    assert npu["norms"][0] == pytest.approx(expected["norms"][0], rel=1e-5)
    assert found["cpu"]["gemma"]["losses"] != found["cpu"]["dense"]["losses"]


def test_losses_in_bf16(found):
    expected = found["cpu"]["bf16"]["losses"]
    assert found["npu"]["bf16"]["losses"] == pytest.approx(expected, rel=2e-2)


def fused_in_every_layer(calls, norms):
    passes = ran_in_every_layer(
        calls,
        ("npu_fusion_attention", "npu_fusion_attention_grad", 1),
        ("npu_rotary_mul", "npu_rotary_mul_backward", 2),
        ("npu_rms_norm", "npu_rms_norm_backward", norms),
    )
    for layer in range(1, LAYERS + 1):
        assert count(calls, "npu_swiglu", layer, False) >= passes, layer
        assert count(calls, "npu_swiglu_backward", layer, True) >= passes, layer


@pytest.mark.parametrize("name", ["dense", "packed", "bf16", "gemma", "experts", "split"])
def test_every_layer_runs_on_fused_operators(name, found):
    calls = found["journal"][name]
    fused_in_every_layer(calls, norms=4 if name == "gemma" else 2)
    layouts = {e["input_layout"] for e in calls if e["op"] == "npu_fusion_attention"}
    assert layouts == {"TND" if name == "packed" else "SBH"}


@pytest.mark.parametrize("core", OLDER, ids=lambda path: Path(path).name)
def test_older_versions(core, found):
    results, journal = start("npu", found["folder"], [DENSE], core=core)
    assert results["dense"]["losses"] == pytest.approx(found["cpu"]["dense"]["losses"], rel=1e-5)
    fused_in_every_layer(journal["dense"], norms=2)
