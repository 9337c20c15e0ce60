"""Loss, gradient norm and every gradient of every layout are those of one process.

`GRID_TABLE=FILE` writes what was measured as the table of docs/parallelism.md; `GRID_PART=0,6,12`
runs these points of a world size only.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SOURCE = (Path(__file__).parent / "grid_ranks.py").read_text(encoding="utf-8")
FULL = ["--recompute-granularity", "full", "--recompute-method", "uniform",
        "--recompute-num-layers", "1"]  # fmt: skip
RECOMPUTE = {"no": [], "selective": ["--recompute-granularity", "selective"], "full": FULL}
AT_ONCE = 8  # megatron-core keeps the groups of each, and gloo threads for each group
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
    vpp: int = 1
    layers: str = ""
    variable: bool = False
    bf16: bool = False

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
            *(["--num-virtual-stages-per-pipeline-rank", str(self.vpp)] if self.vpp > 1 else []),
            *(["--num-layer-list", self.layers] if self.layers else []),
            *(["--bf16"] if self.bf16 else []),
            *(["--variable-seq-lengths"] if self.variable else []),
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
    """Runs points, and what they are compared with, up to AT_ONCE in one start of processes."""

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
            for start in range(0, len(here), AT_ONCE):
                part = here[start : start + AT_ONCE]
                ranks = run_ranks(world, SOURCE, [job(p) for p in part], timeout=1200)
                for number, point in enumerate(part):
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
    """Every distance below 1e-5, and a line of the table for each point where it is wanted."""
    wrong = {
        point: apart
        for point, apart in found.items()
        if not (max(apart["loss"], apart["norm"], apart["gradient"]) < 1e-5
                and apart["supervised"] == 0 and apart["elements"] > 0)
    }  # fmt: skip
    if table := os.environ.get("GRID_TABLE"):
        with Path(table).open("a", encoding="utf-8") as file:
            file.writelines(line(point, apart) for point, apart in found.items())
    assert not wrong, "\n".join(f"{point}: {apart}" for point, apart in wrong.items())


def line(point: Point, apart: dict[str, Any]) -> str:
    """A row of the table of docs/parallelism.md."""
    stages = f"{point.pp} x {point.vpp}" if point.vpp > 1 else point.layers or point.pp
    yes = {True: "yes", False: ""}
    cells = [
        point.family,
        "packed" if point.packed else "rows",
        point.micro,
        point.accumulation,
        point.dp,
        point.tp,
        yes[point.sp],
        stages,
        point.cp,
        point.recompute,
        yes[point.sharded],
        *(f"{apart[name]:.0e}" for name in ("loss", "norm", "gradient")),
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def layouts(world: int) -> Iterator[Point]:
    """Every TP x PP x CP x DP of `world` processes, packed and not; other choices take turns."""
    number = 0
    for tp, pp, cp in itertools.product((1, 2), (1, 2, 4), (1, 2, 4, 8)):
        if world % (tp * pp * cp):
            continue
        for packed in (True, False):
            number += 1
            dp = world // (tp * pp * cp)
            micro = 2 if number % 3 and ROWS[packed] % (2 * dp) == 0 else 1
            rounds = ROWS[packed] // (micro * dp) % pp == 0
            yield Point(
                family=("gemma2", "llama")[number // 2 % 2],
                packed=packed, tp=tp, pp=pp, cp=cp, dp=dp, micro=micro,
                sp=tp > 1 and number % 4 < 3,
                recompute=tuple(RECOMPUTE)[number % 3],
                sharded=number % 4 > 0,
                vpp=2 if pp == 2 and rounds and number % 4 < 3 else 1,
                layers="1,3" if pp == 2 and not (rounds and number % 4 < 3) else "",
                variable=not packed and number % 4 < 2,
            )  # fmt: skip


def test_two_processes(measure):
    """A choice that has every kind of layout; all of them are in the slow tests below."""
    check(measure([
        Point(cp=2, packed=True, micro=2),
        Point("llama", cp=2, recompute="full", sharded=True),
        Point("llama", pp=2, vpp=2, variable=True, sharded=True),
        Point(pp=2, layers="3,1", packed=True, recompute="selective"),
    ]))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4, 8])
def test_every_layout(measure, world):
    points = list(layouts(world))
    part = os.environ.get("GRID_PART")
    check(measure([points[int(number)] for number in part.split(",")] if part else points))


@pytest.mark.slow
def test_bf16_is_as_near_as_in_one_process(measure):
    """bf16 with fp32 main parameters: the distance from fp32 is that of one process in bf16."""
    alone = {packed: Point(packed=packed, bf16=True) for packed in (True, False)}
    points = [
        Point(packed=True, bf16=True, cp=2), Point(bf16=True, cp=2, sharded=True),
        Point(packed=True, bf16=True, pp=2, vpp=2), Point(bf16=True, tp=2, sp=True),
        Point(bf16=True, dp=2, sharded=True, recompute="full"),
    ]  # fmt: skip
    found = measure([*alone.values(), *points])
    for point in points:
        wanted = found[alone[point.packed]]
        for what in ("gradient", "loss"):
            assert 0 < found[point][what] < 1.25 * wanted[what], (point, found[point], wanted)
        assert found[point]["supervised"] == 0
