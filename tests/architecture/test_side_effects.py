"""Holds that importing the library changes nothing and needs neither an NPU nor a GPU."""

import json
import os
import subprocess
import sys

import pytest

# Third-party packages are imported before the snapshot: what they change is theirs.
IMPORT_ALL = """
import importlib, json, logging, os, signal, sys, threading, warnings
for vendor in ("torch_npu", "transformer_engine", "apex", "flash_attn"):
    sys.modules[vendor] = None
import torch, torch.distributed, torch.nn.functional
import torch.optim, transformers
import megatron.core.models.gpt, megatron.core.optimizer, megatron.core.distributed
import megatron.core.dist_checkpointing, megatron.core.pipeline_parallel
import megatron.core.inference.contexts

def snapshot():
    spaces = {"torch": torch, "torch.cuda": torch.cuda, "torch.distributed": torch.distributed,
              "torch.Tensor": torch.Tensor, "torch.nn.functional": torch.nn.functional,
              "torch.optim": torch.optim}
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and module is not None:
            spaces[name] = module
    state = {f"{space}.{name}": id(value) for space, owner in spaces.items()
             for name, value in vars(owner).items()
             if type(value).__name__ != "module" and not name.startswith("__")}
    state["environ"] = dict(os.environ)
    state["argv"] = list(sys.argv)
    state["path"] = list(sys.path)
    state["cwd"] = os.getcwd()
    state["meta_path"] = [id(f) for f in sys.meta_path]
    state["signals"] = [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    state["root handlers"] = len(logging.getLogger().handlers)
    state["our handlers"] = len(logging.getLogger("mindspeed_llm").handlers)
    state["threads"] = threading.active_count()
    state["torch threads"] = torch.get_num_threads()
    state["dtype"] = str(torch.get_default_dtype())
    state["warnings"] = len(warnings.filters)
    state["files"] = sorted(os.listdir("."))
    state["rng"] = torch.random.get_rng_state().sum().item()
    return state

before = snapshot()
alone = {}
for name in json.loads(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            importlib.import_module(name)
            code = 0
        finally:
            os._exit(code)
    alone[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = snapshot()
print(json.dumps({
    "changed": sorted(key for key in before if after.get(key) != before[key]),
    "alone": {name: code for name, code in alone.items() if code},
    "cuda": torch.cuda.is_initialized(),
    "process group": torch.distributed.is_initialized(),
    "vendors": [name for name in sys.modules if name.split(".")[0] == "torch_npu"
                and sys.modules[name] is not None],
}))
"""

IMPORT_WITHOUT = """
import importlib, json, sys
for name in json.loads(sys.argv[2]):
    sys.modules[name] = None
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({name.split(".")[0] for name, module in sys.modules.items() if module})))
"""


def python(code: str, *args: str, cwd) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that sees no GPU."""
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                        "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    return subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, env=env, text=True,
                          capture_output=True, timeout=900, check=False)  # fmt: skip


def test_importing_every_module_changes_nothing(modules, tmp_path):
    names = sorted(s.name for s in modules if s.layer != "megatron_adaptor")
    assert len(names) >= len(modules) - 1
    done = python(IMPORT_ALL, json.dumps(names), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"changed": [], "alone": {}, "cuda": False, "process group": False,
                      "vendors": []}, done.stderr[-3000:]  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "without"),
    [
        (("", "errors", "logging", "config"), ("torch", "megatron", "transformers", "numpy")),
        (("kernels", "device"), ("megatron", "transformers", "torch_npu")),
        (("data",), ("megatron", "torch_npu")),
    ],
    ids=["base", "kernels", "data"],
)
def test_low_layers_import_without_the_rest(modules, tmp_path, layers, without):
    names = [source.name for source in modules if source.layer in layers]
    assert len(names) >= len(layers)
    done = python(IMPORT_WITHOUT, json.dumps(names), json.dumps(without), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not set(without) & set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_table_loads_without_torch(tmp_path):
    done = python(IMPORT_WITHOUT, '["mindspeed_llm.cli.main"]', '["torch", "megatron"]',
                  cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_top_level_patches_is_refused(root):
    done = python("import patches", cwd=root)
    assert done.returncode != 0
    assert "import mindspeed_llm.patches instead" in done.stderr


def test_patches_are_the_same_module_through_the_link(root):
    code = "import mindspeed_llm.patches as p, pathlib; print(pathlib.Path(p.__file__).resolve())"
    done = python(code, cwd=root)
    assert done.stdout.strip() == str(root / "patches" / "__init__.py"), done.stderr
