"""Owns the tiny training that shows a defect with and without its patch; knows no defect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "distributed" / "tiny_gpt.py"


@pytest.fixture
def train(run_ranks: Callable[..., list[Any]]) -> Callable[..., list[dict[str, Any]]]:
    """`train(world_size, *jobs)`; the first job's `without` names adapters that are left out."""

    def call(world_size: int, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        return run_ranks(world_size, SOURCE.read_text(encoding="utf-8"), *jobs)[-1]["results"]

    return call
