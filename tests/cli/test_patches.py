"""Tests of mindspeed_llm.cli.patches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_llm.cli import patches
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.patches.registry import REGISTER
from mindspeed_llm.patches.versions import SUPPORTED

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "patches.md"


def _run(*flags):
    """In a process of its own: the command applies the register."""
    code = "import sys; from mindspeed_llm.cli import main; sys.exit(main.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "patches", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "DEVICE": "cpu"},
        timeout=120,
    )


def test_the_document_is_the_register():
    assert DOCUMENT.read_text(encoding="utf-8") == patches.as_markdown(REGISTER)
    assert all(patch.why in patches.as_markdown(REGISTER) for patch in REGISTER)


def test_check_applies_every_patch_for_the_cpu():
    done = _run("--check", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["device"] == "cpu" and data["megatron_core"]
    assert [row["target"] for row in data["patches"]] == [patch.target for patch in REGISTER]
    for row in data["patches"]:
        reason = row["reason"]
        away = reason.startswith("not for") or reason.endswith(" is not installed")
        expected = "skipped" if away else "applied"
        assert row["state"] == expected, row
    assert sum(row["state"] == "applied" for row in data["patches"]) > 15


def test_table_names_every_target_and_reason():
    done = _run()
    assert done.returncode == 0, done.stderr
    for words in (
        "megatron.*:torch",
        "armed",
        "skipped: not for cpu",
        "remove when",
        SUPPORTED,
    ):
        assert words in done.stdout
    assert done.stdout.count("wrap") >= 10


def test_markdown_is_given_alone():
    with pytest.raises(ConfigError, match="--markdown"):
        patches.main(["--markdown", "--json"])


def test_unknown_flag_is_one_line():
    done = _run("--jsn")
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[0]
        .endswith("did you mean --json? (see mindspeed-llm patches --help)")
    )
