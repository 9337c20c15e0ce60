"""Holds that wheel, sdist and editable install are complete, from any working directory."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "quickstart", "*.egg-info", "build", "dist",
                                  "__pycache__", ".*_cache", "logs", "ckpt")  # fmt: skip
CHECK = """
import importlib, pkgutil, pathlib, mindspeed_llm
import mindspeed_llm.patches.registry, mindspeed_llm.patches.engine, mindspeed_llm.cli.main
import mindspeed_llm.data.templates
print(pathlib.Path(mindspeed_llm.__file__).resolve().parent)
"""


def quietly(*command, cwd, **environment):
    """Run; its stripped output. A failure shows what was said."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, text=True,
                          capture_output=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the working tree with its link, so that building leaves nothing behind here."""
    copy = tmp_path_factory.mktemp("clone") / "repository"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_OUT)
    assert (copy / "mindspeed_llm/patches").is_symlink()
    return copy


def build_wheel(source, target):
    quietly(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--wheel-dir", target, source, cwd=target)  # fmt: skip
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(tmp_path):
    """A new virtual environment that sees this one's dependencies, but not this package."""
    home = tmp_path / "venv"
    quietly(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    (site,) = home.glob("lib/python*/site-packages")
    # Paths in a .pth file are searched, but the .pth files in them (editable installs) are not run.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def install(home, *what):
    quietly(sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet",
            "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", *what,
            cwd=home)  # fmt: skip


def names(wheel):
    return sorted(name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name)


def test_the_wheel_holds_every_module_once_and_nothing_else(wheel, checkout):
    package = checkout / "mindspeed_llm"
    expected = [
        str((Path(directory) / name).relative_to(checkout))
        for directory, _, files in os.walk(package, followlinks=True)
        for name in files
        if name.endswith(".py") or name == "py.typed" or directory.endswith("/inference/page")
    ]
    assert names(wheel) == sorted(expected)
    patches = [name for name in expected if name.startswith("mindspeed_llm/patches/")]
    assert len(patches) == len(list((checkout / "patches").rglob("*.py"))) > 5


def test_the_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text or "License: Apache-2.0" in text
    assert "Requires-Python: >=3.10" in text
    needs = {line.split()[1].split(">")[0].split("<")[0] for line in text.splitlines()
             if line.startswith("Requires-Dist:") and "extra" not in line}  # fmt: skip
    assert needs == {"torch", "megatron-core", "transformers", "numpy", "safetensors", "pyarrow",
                     "rich", "jinja2"}  # fmt: skip
    for extra in ("npu", "cuda", "serve", "dev", "quickstart"):
        assert f"Provides-Extra: {extra}" in text


def test_the_sdist_builds_the_same_wheel(checkout, wheel, tmp_path):
    quietly(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        assert any(name.endswith("/LICENSE") for name in file.getnames())
        file.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    (tmp_path / "again").mkdir()
    assert names(build_wheel(source, tmp_path / "again")) == names(wheel)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_installed_it_works_from_any_directory(kind, environment, wheel, checkout, tmp_path):
    """In the repository's root too, where the checkout itself is found first."""
    install(environment, *([wheel] if kind == "wheel" else ["--editable", checkout]))
    python, own = environment / "bin/python", checkout / "mindspeed_llm"
    elsewhere = quietly(python, "-c", CHECK, cwd=tmp_path)
    assert (Path(elsewhere) == own) == (kind == "editable")
    assert Path(quietly(python, "-c", CHECK, cwd=checkout)) == own
    assert quietly(environment / "bin/mindspeed-llm", "--version", cwd=tmp_path) == "0.1.0"
    applied = "import mindspeed_llm.megatron_adaptor, megatron.core; print('applied')"
    for place in (tmp_path, checkout):
        assert quietly(python, "-c", applied, cwd=place, DEVICE="cpu").endswith("applied")


def test_uninstalled_the_scripts_run_from_a_checkout(environment, checkout, tmp_path):
    for place in (tmp_path, checkout):
        said = quietly(
            environment / "bin/python", checkout / "convert_ckpt.py", "--help", cwd=place
        )
        assert "--load-dir" in said
