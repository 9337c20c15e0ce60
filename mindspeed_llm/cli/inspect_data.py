"""Owns the `inspect-data` command and how rows look on a terminal, in colour or not; knows nothing
of how they are made or read.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.text import Text

from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.inspect import InspectConfig
from mindspeed_llm.data.histogram import check_plot, draw
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.view import Counts, PreparedRows, RowView, printable

_BAR = "\u2502"
_SIGNS = {"context": ("   ", "dim"), "trained": ("+++", "bold green"), "other": ("!!!", "bold red")}
_LEGEND = f"+++ trained   !!! trained as another token   else not trained   {_BAR} between tokens"


def main(argv: Sequence[str]) -> int:
    """Show a data set; returns the exit code."""
    (config,) = parse(argv, InspectConfig, prog="mindspeed-llm inspect-data",
                      description="What a data set holds and what is trained.")  # fmt: skip
    if config.plot is not None:
        check_plot(config.plot)
    rows = PreparedRows(config.prefix)
    tokenizer = None
    if config.tokenizer_name_or_path is not None:
        tokenizer = load_tokenizer(config.tokenizer_name_or_path)
        rows.check_tokenizer(tokenizer, f"--tokenizer-name-or-path {config.tokenizer_name_or_path}")
    shown = [rows.row(number, tokenizer) for number in config.row_numbers]
    counts = rows.counts()
    if config.json:
        found = {"manifest": dataclasses.asdict(rows.manifest),
                 "per_conversation": _described(counts),
                 "rows": [row.as_json() for row in shown]}  # fmt: skip
        print(json.dumps(found))
    else:
        console = terminal(sys.stdout)
        for line in _summary(rows, counts):
            console.print(line, soft_wrap=True)
        show_rows(console, shown, table=config.table)
    if config.plot is not None:
        draw(counts, config.plot, printable(str(config.prefix)))
        print(f"drew {config.plot}", file=sys.stderr)
    return 0


def terminal(stream: TextIO) -> Console:
    """A console on which nothing but our own styles is interpreted; no colour where piped."""
    return Console(file=stream, markup=False, highlight=False, emoji=False)


def show_rows(console: Console, rows: Iterable[RowView], *, table: bool = False) -> None:
    """Print rows, one line a stretch of tokens that are treated alike, or one line a token."""
    console.print(Text(_LEGEND, style="dim"), soft_wrap=True)
    for row in rows:
        share = row.supervised / max(1, len(row.ids))
        segments = int(row.segments.max(initial=0))
        console.print(
            Text(f"\nrow {row.number}: {len(row.ids)} tokens, {row.supervised} supervised "
                 f"({share:.1%}), {segments} segment{'' if segments == 1 else 's'}", style="bold"),
            soft_wrap=True,
        )  # fmt: skip
        lines = _table(row) if table else _stretches(row)
        for line in lines:
            console.print(line, soft_wrap=True)


def _stretches(row: RowView) -> Iterable[Text]:
    yield Text("segment  positions", style="dim")
    for kind, start, stop in row.runs():
        segment = row.segments[start]
        ends = f"{row.positions[start]}-{row.positions[stop - 1]}"
        line = Text(f"{segment or '-':>7}  {ends:<13}", style="cyan")
        if kind == "padding":
            yield line.append(f"    padding: {stop - start} tokens", style="dim")
            continue
        sign, style = _SIGNS[kind]
        line.append(f"{sign} ", style=style)
        for index in range(start, stop):
            line.append(_token(row, index), style=style)
            if kind == "other":
                line.append(f" trained as {row.trained_as[index]}", style=style)
            elif index < stop - 1:
                line.append(_BAR, style="dim")
        yield line


def _table(row: RowView) -> Iterable[Text]:
    yield Text("  index segment position      id   label     token", style="dim")
    for kind, start, stop in row.runs():
        sign, style = _SIGNS.get(kind, ("   ", "dim"))
        for index in range(start, stop):
            where = f"{index:>7} {row.segments[index]:>7} {row.positions[index]:>8}"
            line = Text(where, style="cyan")
            line.append(f" {row.ids[index]:>7} {row.labels[index]:>7} {sign} ", style=style)
            line.append("" if row.tokens is None else row.tokens[index], style=style)
            if kind == "other":
                line.append(f" trained as {row.trained_as[index]}", style=style)
            yield line


def _token(row: RowView, index: int) -> str:
    if row.tokens is None:
        return str(row.ids[index])
    return row.tokens[index].replace(_BAR, "\\u2502")


def _summary(rows: PreparedRows, counts: Counts) -> Iterable[Text]:
    facts = rows.summary()
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, float):
            many = name == "conversations a row"
            value = f"{value:.2f}" if many else f"{value:.2%}"
        elif isinstance(value, int):
            value = f"{value:,}"
        yield Text(f"{name:<{width}}  ").append(printable(value), style="bold")
    for name, numbers in _described(counts).items():
        inner = ", ".join(f"{what} {number:g}" for what, number in numbers.items())
        yield Text(f"{name} a conversation: ").append(inner, style="bold")
    yield Text("(a trained answer is a stretch of supervised tokens)", style="dim")


def _described(counts: Counts) -> dict[str, dict[str, float]]:
    described = {}
    for name, values in (("tokens", counts.lengths), ("trained answers", counts.answers)):
        numbers = {"least": values.min(), "median": np.median(values), "mean": values.mean(),
                   "95 %": np.percentile(values, 95), "most": values.max()}  # fmt: skip
        described[name] = {what: round(float(number), 2) for what, number in numbers.items()}
    return described
