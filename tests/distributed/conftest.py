"""Owns the reference that every layout is compared with; knows no layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = (Path(__file__).parent / "tiny_gpt.py").read_text(encoding="utf-8")


@pytest.fixture
def train(run_ranks: Callable[..., list[Any]]) -> Callable[..., list[dict[str, Any]]]:
    """`train(world_size, *jobs)` -> one result a job, from the last rank, where the loss is."""

    def call(world_size: int, *jobs: dict[str, Any], timeout: float = 240) -> list[dict[str, Any]]:
        return run_ranks(world_size, SOURCE, *jobs, timeout=timeout)[-1]["results"]

    return call


@pytest.fixture
def same() -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Asserts that two results have equal losses and gradient norms (1e-5 relative)."""

    def check(result: dict[str, Any], expected: dict[str, Any]) -> None:
        for key in ("losses", "norms"):
            assert result[key] == pytest.approx(expected[key], rel=1e-5), key

    return check


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """One process, three steps; the same on megatron-core 0.12.3 to 0.16.1."""
    return {
        "losses": [4.946463584899902, 4.965662479400635, 4.973592758178711],
        "norms": [1.7995406571374468, 2.041580457878457, 1.6985004178266485],
    }
