"""Tests of mindspeed_llm.patches.versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_llm.patches.versions import SUPPORTED, matches, mcore_version


@pytest.mark.parametrize(
    ("version", "comparisons", "expected"),
    [
        ("0.19.2", SUPPORTED, True),
        ("0.12.3", SUPPORTED, True),
        ("0.12.2", SUPPORTED, False),
        ("0.20.0", SUPPORTED, False),
        ("0.9.0", ">=0.14", False),
        ("0.16.0", "==0.16", True),
        ("0.16.1", "!=0.16.1", False),
        ("0.16.1", ">0.16,<=0.16.1", True),
    ],
)
def test_matches(version, comparisons, expected):
    assert matches(version, comparisons) is expected


def test_setup_asks_for_what_is_supported():
    setup = Path(__file__).parents[2] / "setup.py"
    assert f'"megatron-core{SUPPORTED}"' in setup.read_text(encoding="utf-8")


def test_a_comparison_that_is_none():
    with pytest.raises(ValueError, match="~=0.16"):
        matches("0.16.0", "~=0.16")


def test_the_version_that_would_be_imported():
    code = (
        "import sys; from mindspeed_llm.patches.versions import mcore_version as v; found = v(); "
        "assert 'megatron' not in sys.modules; import megatron.core; "
        "assert megatron.core.__version__ == found, (megatron.core.__version__, found)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_source_tree_in_front_counts(tmp_path, monkeypatch):
    core = tmp_path / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise AssertionError('imported')")
    (core / "package_info.py").write_text("MAJOR = 7\nMINOR = 8\nPATCH = 9\nPRE_RELEASE = 'rc0'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert mcore_version() == "7.8.9"


def test_no_megatron(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert mcore_version() is None
