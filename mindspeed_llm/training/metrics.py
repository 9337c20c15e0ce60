"""Owns the numbers of a run: one record an iteration, the file of records, the loss curve, and the
time that is left. Knows neither how they are shown nor where they come from.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

RECORDS = "train.jsonl"
CURVE = "loss.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over one global batch: of the loss in nats, and of token counts.

    `real_tokens` are inputs that a token of the same conversation follows, as many for packed rows
    as for the same conversations unpacked; `padded_tokens` are all positions that were computed.
    `tflop` is the arithmetic that the batch asks for, in 10^12 operations (see `flops.Work`);
    `turns`, of an evaluation, are loss sum and supervised tokens of the 1st, 2nd, ... answer.
    """

    loss_sum: float
    supervised: int
    real_tokens: int
    padded_tokens: int
    tflop: float = 0.0
    turns: tuple[tuple[float, int], ...] = ()

    @property
    def loss(self) -> float:
        """Mean cross entropy of a supervised token, nats."""
        return self.loss_sum / self.supervised

    @classmethod
    def sum_of(cls, parts: Sequence[Totals]) -> Totals:
        """Of several batches."""
        columns = zip(*(part.turns for part in parts), strict=True)
        return cls(
            loss_sum=math.fsum(part.loss_sum for part in parts),
            supervised=sum(part.supervised for part in parts),
            real_tokens=sum(part.real_tokens for part in parts),
            padded_tokens=sum(part.padded_tokens for part in parts),
            tflop=math.fsum(part.tflop for part in parts),
            turns=tuple(
                (math.fsum(loss for loss, _ in column), sum(count for _, count in column))
                for column in columns
            ),
        )

    def turn_losses(self) -> dict[int, tuple[float, int]]:
        """Turn (from 1 on) -> mean loss of its supervised tokens, and their number; those there."""
        return {
            turn: (loss / count, count) for turn, (loss, count) in enumerate(self.turns, 1) if count
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One iteration. Rates count real tokens, not padding; `lr` is the rate that the step used.

    `padding_share` is of all computed positions, and counts the last token of each packed
    conversation, whose successor is another's. `tflops_per_device` is `Totals.tflop` a second and
    device, `mfu` its share of the device's peak, None where that is not known. `memory_gib` is the
    most this process has held so far: of the device, or on a CPU of the machine.
    """

    iteration: int
    consumed_samples: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    tokens_per_second: float
    supervised_tokens_per_second: float
    supervised_share: float
    padding_share: float
    tflops_per_device: float
    mfu: float | None
    memory_gib: float

    @classmethod
    def of(
        cls,
        totals: Totals,
        *,
        iteration: int,
        consumed: int,
        lr: float,
        norm: float,
        seconds: float,
        devices: int = 1,
        peak: float | None = None,
        memory: float = 0.0,
    ) -> Record:
        """From the sums of an iteration that took `seconds` of wall time on `devices`, each of
        `peak` TFLOP/s; `memory` in bytes."""
        speed = totals.tflop / seconds / devices
        return cls(
            iteration=iteration,
            consumed_samples=consumed,
            loss=totals.loss,
            lr=lr,
            grad_norm=norm,
            seconds=seconds,
            tokens_per_second=totals.real_tokens / seconds,
            supervised_tokens_per_second=totals.supervised / seconds,
            supervised_share=totals.supervised / totals.real_tokens,
            padding_share=1 - totals.real_tokens / totals.padded_tokens,
            tflops_per_device=speed,
            mfu=None if peak is None else speed / peak,
            memory_gib=memory / 2**30,
        )


class Clock:
    """Time left, from the mean of the latest iterations; the first, which warms up, is not kept."""

    def __init__(self, window: int = 20) -> None:
        self._latest: collections.deque[float] = collections.deque(maxlen=window)
        self._seen = 0

    def add(self, seconds: float) -> None:
        """Count an iteration that took `seconds`."""
        self._seen += 1
        if self._seen == 2:
            self._latest.clear()
        self._latest.append(seconds)

    def left(self, iterations: int) -> float:
        """Seconds that `iterations` more will take."""
        return iterations * sum(self._latest) / len(self._latest)


class RecordFile:
    """JSON lines, one an iteration or evaluation; a continued run cuts off what it will do again.

    Each line is written at once, so a killed run leaves all it did.
    """

    _file: TextIO | None = None

    def __init__(self, directory: Path, *, after: int) -> None:
        """Open `directory`/train.jsonl and keep its lines up to iteration `after` (0: none)."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / RECORDS
        self.cut(after)

    def cut(self, after: int) -> None:
        """Forget the lines of iterations behind `after`."""
        kept = [line for line in read_records(self.path) if line["iteration"] <= after]
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(fresh, self.path)
        if self._file is not None:
            self._file.close()
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        assert self._file is not None, "__init__ has opened it"
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Lines of a record file; none if it is missing. A line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def draw_curve(records: Path, image: Path) -> str:
    """Draw the losses of a record file to `image`; returns a sentence for the user.

    matplotlib is not a requirement: without it nothing is drawn, and the sentence says how to
    get it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return f"no {image.name}: pip install matplotlib, and it is drawn at the end of training"
    lines = read_records(records)
    steps = [line for line in lines if "loss" in line]
    figure = Figure(figsize=(7, 4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    alone = "." if len(steps) == 1 else ""  # a line of one point would not be seen
    axes.plot([s["iteration"] for s in steps], [s["loss"] for s in steps], alone, label="training")
    checks = [line for line in lines if "validation_loss" in line]
    if checks:
        x, y = [c["iteration"] for c in checks], [c["validation_loss"] for c in checks]
        axes.plot(x, y, "o-", label="validation")
        for turn in _drawn(checks):
            has = [c for c in checks if turn in c["validation_turn_losses"]]
            y = [c["validation_turn_losses"][turn] for c in has]
            axes.plot([c["iteration"] for c in has], y, ".--", lw=0.8, label=f"turn {turn}")
        axes.legend()
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    fresh = image.with_suffix(".tmp")
    figure.savefig(fresh, format="png")
    os.replace(fresh, image)
    return f"loss curve: {image}"


def _drawn(checks: Sequence[dict[str, Any]], most: int = 6) -> list[str]:
    """Turns whose validation losses are drawn: the first ones, if there are several."""
    turns = {turn for check in checks for turn in check.get("validation_turn_losses", {})}
    for check in checks:  # of an older run
        check.setdefault("validation_turn_losses", {})
    return sorted(turns, key=int)[:most] if len(turns) > 1 else []
