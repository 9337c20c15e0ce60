"""Owns `mindspeed-llm selfcheck`: every kernel of a device against the plain one, and a training
run against the CPU's, as a table and a report to send back. The comparisons themselves are
`kernels.parity` and `selfcheck_training`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspeed_llm import __version__
from mindspeed_llm.config.flags import parse, setting
from mindspeed_llm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfcheckConfig:
    """What to check and where to write it"""

    device: str | None = setting(
        None, choices=("npu", "cuda", "cpu"), help="default: env DEVICE, else the best that works"
    )
    kernels_only: bool = setting(False, help="compare kernels, and do not train")
    report: Path | None = setting(
        None, help="also write the results here as JSON, to send with a bug report"
    )

    def __post_init__(self) -> None:
        if self.report is not None and not self.report.absolute().parent.is_dir():
            raise ConfigError(
                f"--report {self.report}: its directory does not exist; make it first"
            )


def main(argv: Sequence[str]) -> int:
    """Run all comparisons; exit code 1 when one fails."""
    (config,) = parse(
        argv,
        SelfcheckConfig,
        prog="mindspeed-llm selfcheck",
        description="Every kernel of a device against plain torch on the CPU, then a training run.",
    )
    report = check(config.device, train=not config.kernels_only)
    _show(report)
    if config.report is not None:
        config.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"report: {config.report}")
    return 1 if report["counts"].get("fail") else 0


def check(requested: str | None, *, train: bool) -> dict[str, Any]:
    """The results and what they were made with; a line of progress for each on a terminal."""
    import torch

    from mindspeed_llm.cli import selfcheck_training
    from mindspeed_llm.device.detect import detect
    from mindspeed_llm.device.runtime import local_rank
    from mindspeed_llm.kernels.parity import compare

    chosen = detect(requested)
    device = chosen.torch_device(local_rank())
    results: list[dict[str, Any]] = []
    runs = [compare(device, dtype) for dtype in (torch.float32, torch.bfloat16)]
    if train:
        runs.append(selfcheck_training.compare(chosen.kind))
    for result in itertools.chain.from_iterable(runs):
        results.append(dataclasses.asdict(result))
        if sys.stderr.isatty():
            print(f"\r{len(results):4d} {result.name:40.40}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return {
        "mindspeed_llm": __version__, "device": chosen.kind, "why": chosen.reason,
        "machine": _machine(chosen.kind), "counts": dict(Counter(r["state"] for r in results)),
        "results": results,
    }  # fmt: skip


def _machine(kind: str) -> dict[str, str]:
    import torch

    from mindspeed_llm.device import npu

    found = {"python": platform.python_version(), "system": platform.platform(),
             "torch": torch.__version__}  # fmt: skip
    if kind == "cuda":
        found["card"] = torch.cuda.get_device_name(0)
    if kind == "npu":
        found |= npu.versions()
    return found


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report['device']} against plain torch on the CPU"
    table = Table("operation", "dtype", "kernel", "state", "error", "reason", title=title)
    for row in report["results"]:
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        table.add_row(row["name"], row["dtype"], row["kernel"], row["state"], error, row["reason"])
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)
    console.print(table)
    counts = report["counts"]
    print(", ".join(f"{counts.get(state, 0)} {state}" for state in ("pass", "fail", "skipped")))
