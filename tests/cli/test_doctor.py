"""`mindspeed-llm doctor`: a healthy environment, and what it says of each kind of broken one."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest

from mindspeed_llm.cli import doctor, kernels
from mindspeed_llm.cli.packages import Package

FINE = {"torch": Package("torch", "2.13.0+cpu", "/site/torch/__init__.py")}


@pytest.fixture
def examined(monkeypatch):
    """`examined(needed={module: Package}, optional=...)`: findings with these packages only."""

    def examine(needed, optional=()):
        packages = needed | {p.name: p for p in optional}
        monkeypatch.setattr(doctor, "look", lambda module, _: packages[module])
        monkeypatch.setattr(doctor, "NEEDED", {m: doctor.NEEDED.get(m, (m, ">=1")) for m in needed})
        monkeypatch.setattr(
            doctor,
            "OPTIONAL",
            {p.name: doctor.OPTIONAL.get(p.name, (p.name, "x")) for p in optional},
        )
        return doctor.examine()

    return examine


def test_this_environment_is_healthy_and_complete():
    command = [sys.executable, "-W", "ignore", "-m", "mindspeed_llm.cli.main", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"DEVICE": "cpu"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["healthy"] and not found["problems"]
    rows = {row["name"]: row for row in found["packages"]}
    assert rows.keys() == doctor.NEEDED.keys() | doctor.OPTIONAL.keys()
    for module in doctor.NEEDED:
        assert rows[module]["state"] == "fine" and os.path.exists(rows[module]["file"])
    assert found["about"]["device"].startswith(
        "cpu (asked for by DEVICE), collectives through gloo"
    )
    assert found["about"]["$DEVICE"] == "cpu"
    assert found["patches"]["applied"] > 5 and "armed" not in found["patches"]
    assert found["kernels"] == kernels.rows("cpu")


def test_it_needs_what_the_installation_needs():
    wanted = {}
    for line in importlib.metadata.requires("mindspeed-llm"):
        if "extra ==" not in line:
            name, versions = re.match(r"([\w-]+)(.*)", line).groups()
            wanted[name] = sorted(versions.split(","))
    assert {d: sorted(v.split(",")) for d, v in doctor.NEEDED.values()} == wanted


@pytest.mark.parametrize(("package", "words"), [
    (Package("torch"), "torch is not installed: pip install 'torch>=2.6'"),
    (Package("torch", "2.13.0", problem="ImportError: libc10.so: cannot open shared object"),
     "torch cannot be imported .*libc10.*pip install --force-reinstall"),
    (Package("torch", "2.1.0", "/x/torch/__init__.py"), r"torch is 2.1.0 \(/x/.*expected >=2.6"),
])  # fmt: skip
def test_what_is_needed_and_broken(package, words, examined):
    found = examined({"torch": package})
    assert len(found.problems) == 1 and re.search(words, found.problems[0])
    assert found.packages[0]["state"] in ("missing", "broken", "unsupported")


def test_broken_optional_packages_are_remarks(examined):
    broken = Package("flash_attn", "2.7", problem="ImportError: x.so: undefined symbol: _ZN")
    found = examined(FINE, [broken, Package("apex")])
    assert not found.problems and len(found.remarks) == 1
    assert "flash_attn is installed and cannot be imported" in found.remarks[0]
    assert "pip uninstall flash-attn" in found.remarks[0]
    assert [row["state"] for row in found.packages] == ["fine", "broken", "not installed"]


def test_the_package_to_mend_is_the_one_that_is_broken(examined):
    """A library that takes the process along, too: megatron-core imports it and dies of it."""
    core = Package("megatron.core", "0.16.1", problem="its import dies (exit code 139)")
    engine = Package("transformer_engine", "2.1", problem="its import dies (exit code 139)")
    found = examined(FINE | {"megatron.core": core}, [engine])
    assert found.problems == ["megatron.core cannot be imported (its import dies (exit code 139)). "
                              "It imports transformer_engine, broken as remarked: mend or remove "
                              "that first"]  # fmt: skip
    assert "pip uninstall transformer-engine" in found.remarks[0]
    (problem,) = examined(FINE | {"megatron.core": core}).problems
    assert "pip install --force-reinstall --no-deps megatron-core" in problem


def test_two_megatrons():
    core = Package("megatron.core", "0.16.1", "/site/megatron/core/__init__.py")
    training = Package("megatron.training", None, "/checkout/megatron/training/__init__.py")
    found = doctor.Findings({}, [], [], {}, [], [])
    doctor._check_one_megatron(found, {core.name: core.file, training.name: training.file})
    assert "megatron.core from /site and megatron.training from /checkout" in found.remarks[0]
    doctor._check_one_megatron(found, {core.name: core.file, training.name: None})
    assert len(found.remarks) == 1


def test_a_device_that_does_not_work_is_a_problem(examined, monkeypatch):
    monkeypatch.setenv("DEVICE", "npu")
    (problem,) = examined(FINE).problems
    assert "DEVICE is npu, but torch_npu is not installed" in problem


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["torch is not installed"], 1)])
def test_the_table_and_the_exit_code(problems, code, monkeypatch, capsys):
    findings = doctor.Findings({"python": "3.11"}, [], [], {"applied": 2}, problems, ["remark"])
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert doctor.main([]) == code
    shown = capsys.readouterr().out
    assert "2 applied" in shown and all(f"problem: {p}" in shown for p in problems)
