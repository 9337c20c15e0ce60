"""Loss, gradient norm and every gradient of every layout are those of one process.

`GRID_TABLE=FILE` writes what was measured as the table of docs/parallelism.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = (Path(__file__).parent / "grid_ranks.py").read_text(encoding="utf-8")
FULL = ["--recompute-granularity", "full", "--recompute-method", "uniform",
        "--recompute-num-layers", "1"]  # fmt: skip
RECOMPUTE = {"no": [], "selective": ["--recompute-granularity", "selective"], "full": FULL}
ROWS = {True: 8, False: 24}  # of a global batch: 24 conversations, packed or not


@dataclasses.dataclass(frozen=True)
class Point:
    """One layout of one model."""

    family: str = "gemma2"
    packed: bool = False
    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    sp: bool = False
    micro: int = 1
    recompute: str = "no"
    sharded: bool = False

    @property
    def world(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def accumulation(self) -> int:
        return ROWS[self.packed] // (self.micro * self.dp)

    def flags(self, data: dict[str, str]) -> list[str]:
        """The command line of a training run."""
        length = "64" if self.packed else "32"
        return [
            "--load", data[self.family], "--data-path", data["packs" if self.packed else "rows"],
            "--seq-length", length, "--train-iters", "2", "--lr", "1e-3",
            "--lr-decay-style", "constant", "--clip-grad", "0",
            "--global-batch-size", str(ROWS[self.packed]), "--micro-batch-size", str(self.micro),
            "--tensor-model-parallel-size", str(self.tp),
            "--pipeline-model-parallel-size", str(self.pp),
            "--context-parallel-size", str(self.cp),
            *(["--sequence-parallel"] if self.sp else []),
            *(["--use-distributed-optimizer"] if self.sharded else []),
            *RECOMPUTE[self.recompute],
        ]  # fmt: skip


Run = Callable[[list[Point]], dict[Point, dict[str, Any]]]


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sft_data: Callable[..., Path],
    tiny_tokenizer_dir: Path,
    tiny_chat_model: Callable[[str], Path],
) -> dict[str, str]:
    """Models, and 24 conversations of 6 to 30 tokens, unpacked and packed into 8 rows of 64."""
    folder = tmp_path_factory.mktemp("grid")
    found = {family: str(tiny_chat_model(family)) for family in ("gemma2", "llama")}
    found["rows"] = str(tiny_sft_data(folder / "rows", tiny_tokenizer_dir, longest=30, seed=3))
    found["packs"] = str(
        tiny_sft_data(folder / "packs", tiny_tokenizer_dir, longest=30, seed=3, capacity=64)
    )
    found["references"] = str(folder)
    return found


@pytest.fixture
def measure(run_ranks: Callable[..., list[Any]], data: dict[str, str]) -> Run:
    """Runs points, and what they are compared with, in one start of processes a world size."""

    def run(points: list[Point]) -> dict[Point, dict[str, Any]]:
        alone = sorted({Point(p.family, p.packed) for p in points}, key=repr)

        def job(point: Point, **more: Any) -> dict[str, Any]:
            name = f"{point.family}-{point.packed}.safetensors"
            path = Path(data["references"]) / name
            return {"flags": point.flags(data), "reference": str(path), **more}

        wanted = dict(zip(
            alone, run_ranks(1, SOURCE, [job(p, write=True) for p in alone], timeout=300)[0],
            strict=True))  # fmt: skip
        found = {}
        for world in sorted({p.world for p in points}):
            here = [p for p in points if p.world == world]
            ranks = run_ranks(world, SOURCE, [job(p) for p in here], timeout=60 + 60 * len(here))
            for number, point in enumerate(here):
                every = [rank[number] for rank in ranks]
                found[point] = difference(every, wanted[Point(point.family, point.packed)])
        return found

    return run


def difference(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> dict[str, Any]:
    """Largest relative distances over all ranks."""
    worst = max(ranks, key=lambda rank: rank["gradient"])
    return {
        name: max(
            abs(found / wanted - 1)
            for rank in ranks
            for found, wanted in zip(rank[key], alone[key], strict=True)
        )
        for name, key in (("loss", "losses"), ("norm", "norms"), ("supervised", "counts"))
    } | {"gradient": worst["gradient"], "worst": worst["worst"],
         "elements": min(rank["elements"] for rank in ranks)}  # fmt: skip


def check(found: dict[Point, dict[str, Any]]) -> None:
    wrong = {
        point: apart
        for point, apart in found.items()
        if not (max(apart["loss"], apart["norm"], apart["gradient"]) < 1e-5
                and apart["supervised"] == 0 and apart["elements"] > 0)
    }  # fmt: skip
    assert not wrong, "\n".join(f"{point}: {apart}" for point, apart in wrong.items())


def test_two_processes(measure):
    check(measure([
        Point(cp=2), Point(cp=2, packed=True, micro=2), Point("llama", cp=2, recompute="full"),
        Point("llama", cp=2, packed=True, recompute="selective", sharded=True),
    ]))  # fmt: skip
