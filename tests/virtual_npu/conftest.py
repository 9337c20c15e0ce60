"""Owns when these tests are collected: with a virtual NPU (run.sh), or by name they say why not."""

import os

import pytest

ACTIVE = os.environ.get("VIRTUAL_NPU", "0") != "0"
collect_ignore_glob = [] if ACTIVE else ["test_*.py"]


@pytest.fixture
def journal():
    """The calls of fused operators in this process since the test began."""
    from rig import journal

    journal.entries.clear()
    return journal.entries
