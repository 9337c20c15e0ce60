"""Owns `mindspeed-llm patches`: prints the register, its state and the chosen kernels; it changes
nothing lasting."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mindspeed_llm.cli.kernels import rows
from mindspeed_llm.cli.kernels import table as kernels
from mindspeed_llm.config.flags import parse, setting
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.patches import engine
from mindspeed_llm.patches.record import Outcome, Patch, Report
from mindspeed_llm.patches.registry import REGISTER

_HEAD = """\
# Patches

Everything this library changes in megatron-core and torch, generated from the register
(`patches/registry.py`) by `mindspeed-llm patches --markdown > docs/patches.md`.
`mindspeed-llm patches` shows what holds on this machine, `--check` proves it by importing every
target. `import mindspeed_llm.megatron_adaptor` applies the register;
`mindspeed_llm.patches.engine.revert()` takes everything back except the NPU vendor's switch.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchesConfig:
    """What to show"""

    json: bool = setting(False, help="print JSON, for bug reports")
    markdown: bool = setting(False, help="print the register as docs/patches.md")
    check: bool = setting(False, help="import every target, so that every patch is applied now")

    def __post_init__(self) -> None:
        if self.markdown and (self.json or self.check):
            raise ConfigError("--markdown shows the register, not a machine's state; give it alone")


def main(argv: Sequence[str]) -> int:
    """Print the register; exit code 0, or an error when a patch does not fit."""
    (config,) = parse(
        argv,
        PatchesConfig,
        prog="mindspeed-llm patches",
        description="What is patched here, why, and until when.",
    )
    if config.markdown:
        sys.stdout.write(as_markdown(REGISTER))
        return 0
    engine.apply()
    if config.check:
        for module in engine.modules():
            importlib.import_module(module)
    report = engine.report()
    if config.json:
        print(json.dumps(as_data(report), indent=2))
    else:
        _print_table(report)
    return 0


def as_data(report: Report) -> dict[str, object]:
    """The report as JSON data."""
    return {
        "device": report.device,
        "megatron_core": report.mcore_version,
        "patches": [_row(outcome) for outcome in report.outcomes],
        "kernels": rows(report.device),
    }


def _row(outcome: Outcome) -> dict[str, object]:
    state = {"state": outcome.state, "reason": outcome.reason, "aliases": list(outcome.aliases)}
    return dataclasses.asdict(outcome.patch) | state


def _print_table(report: Report) -> None:
    found = f"megatron-core {report.mcore_version}" if report.mcore_version else "no megatron-core"
    table = Table(title=f"Patches on {report.device}, {found}", show_lines=True)
    for column in ("target", "kind", "state", "why", "upstream", "remove when", "megatron-core"):
        table.add_column(column, overflow="fold", no_wrap=False)
    for outcome in report.outcomes:
        patch = outcome.patch
        state = outcome.state + (f": {outcome.reason}" if outcome.reason else "")
        target = "\n".join(patch.targets)
        table.add_row(
            target, patch.kind, state, patch.why, patch.upstream, patch.remove_when, patch.mcore
        )
    # a pipe has no width of its own, and 80 columns are too few for seven
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False)
    console.print(table)
    console.print(kernels(rows(report.device), f"Kernels on {report.device}"))


def as_markdown(register: Sequence[Patch]) -> str:
    """The text of docs/patches.md."""
    return "\n".join([_HEAD, *map(_section, register)])


def _section(patch: Patch) -> str:
    also = "".join(f"- also: `{target}`\n" for target in patch.rebind)
    return (
        f"## `{patch.target}` ({', '.join(patch.devices)})\n\n{patch.why}\n\n{also}"
        f"- {patch.kind} by `{patch.adapter}`\n- megatron-core: {patch.mcore}\n"
        f"- upstream: {patch.upstream}\n- remove when: {patch.remove_when}\n"
    )
