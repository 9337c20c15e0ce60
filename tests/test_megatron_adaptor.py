"""Tests of mindspeed_llm.megatron_adaptor, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def _python(code, *flags, **env):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "DEVICE": "cpu", **env},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_it_imports_no_megatron_and_reads_no_command_line():
    code = """
import sys, json
before = list(sys.argv)
import mindspeed_llm.megatron_adaptor
from mindspeed_llm.patches import engine
print(json.dumps({"megatron": [n for n in sys.modules if n.split(".")[0] == "megatron"],
                  "argv": sys.argv == before, "device": engine.report().device}))
"""
    result = _python(code, "--no-such-flag", "--device=npu")
    assert result == {"megatron": [], "argv": True, "device": "cpu"}


def test_torch_cuda_stays_as_it_is_while_megatron_runs():
    code = """
import json, torch
cuda, before, own = torch.cuda, dict(vars(torch.cuda)), dict(vars(torch))
import mindspeed_llm.megatron_adaptor
import megatron.core.tensor_parallel.random as random
import megatron.core.optimizer
assert random.torch is not torch and random.torch.cuda is not torch.cuda
changed = [n for n in before if vars(torch.cuda).get(n) is not before[n]]
changed += [n for n in own if vars(torch).get(n) is not own[n]]
refused = ""
try:
    torch.zeros(1).cuda()
except (AssertionError, RuntimeError) as error:
    refused = type(error).__name__
print(json.dumps({"same": torch.cuda is cuda, "changed": changed, "refused": bool(refused),
                  "here": str(random.torch.cuda.current_device())}))
"""
    result = _python(code)
    assert result == {"same": True, "changed": [], "refused": True, "here": "cpu"}


def test_twice_and_in_a_spawned_child(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text("""
import importlib, json, multiprocessing, sys
import mindspeed_llm.megatron_adaptor as adaptor

def child(queue):
    import megatron.core.tensor_parallel.random as random
    queue.put(str(random.torch.cuda.current_device()))

if __name__ == "__main__":
    from mindspeed_llm.patches import engine
    first = engine.report()
    importlib.reload(adaptor)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    answer = queue.get(timeout=60)
    process.join()
    print(json.dumps({"same": engine.report() == first, "child": answer}))
""")
    result = _python(f"import runpy, sys; sys.argv=[{str(script)!r}]; "
                     f"runpy.run_path({str(script)!r}, run_name='__main__')")  # fmt: skip
    assert result == {"same": True, "child": "cpu"}


def test_without_megatron_it_does_nothing():
    code = """
import json, sys, importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name == "megatron" else find(name, *rest))
import torch
import mindspeed_llm.megatron_adaptor
from mindspeed_llm.patches import engine
report = engine.report()
print(json.dumps({"version": report.mcore_version,
                  "states": sorted({o.state for o in report.outcomes}),
                  "reasons": sorted({o.reason for o in report.outcomes}),
                  "torch": "cuda" in vars(torch.Tensor)}))
"""
    assert _python(code) == {
        "version": None,
        "states": ["skipped"],
        "reasons": ["megatron-core is not installed"],
        "torch": False,
    }


@pytest.mark.parametrize("device", ["npu", "cuda"])
def test_a_device_that_does_not_work_is_not_replaced(device):
    code = """
import json
from mindspeed_llm.errors import DeviceError
try:
    import mindspeed_llm.megatron_adaptor
    print(json.dumps("applied"))
except DeviceError as error:
    print(json.dumps(str(error)))
"""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("CUDA works here")
    assert _python(code, DEVICE=device).startswith(f"DEVICE is {device}, but")
