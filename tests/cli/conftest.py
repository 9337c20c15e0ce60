"""What tests of runs read from the directory that a run saved to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def told() -> Callable[[Path], list[list[Any]]]:
    """`told(save)`: iteration, loss, lr, gradient norm and samples so far, of each line."""

    def read(save: Path) -> list[list[Any]]:
        lines = (save / "logs" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        kept = ("iteration", "loss", "lr", "grad_norm", "consumed_samples")
        return [[json.loads(line)[name] for name in kept] for line in lines]

    return read


@pytest.fixture(scope="session")
def bits() -> Callable[[Path, int], dict[str, bytes]]:
    """`bits(save, iteration)`: the weights of a checkpoint by file name."""

    def read(save: Path, iteration: int) -> dict[str, bytes]:
        files = list((save / f"iter_{iteration:07d}").glob("*.safetensors"))
        assert files, f"no checkpoint of iteration {iteration}"
        return {path.name: path.read_bytes() for path in files}

    return read
