"""Owns the tables of an evaluation, of one model or of two side by side; it knows results only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]


def single(result: Result) -> list[str]:
    """Lines that say what a result has of `input` and `history_gain`."""
    lines: list[str] = []
    if found := result.get("input"):
        lines += [
            f"loss on conversations: {found['loss']:.4f} nats a token, perplexity "
            f"{found['perplexity']:.2f} ({found['tokens']} tokens, {found['dialogues']} dialogues)",
            *(f"  turn {turn['turn']}: loss {turn['loss']:.4f}, perplexity "
              f"{turn['perplexity']:.2f} ({turn['replies']} replies)" for turn in found["turns"]),
            f"stop accuracy: at {share(found['ends'])} of the ends of replies a stop token is the "
            f"most probable one, and at {share(found['early'])} of the other places",
        ]  # fmt: skip
    if gain := result.get("history_gain"):
        lines.append(
            f"last reply: loss {gain['true']:.4f} after its history, {gain['shuffled']:.4f} after "
            f"another one's, {gain['none']:.4f} after none; the history helps "
            f"{share(gain['helped'])} of {gain['dialogues']} replies"
        )
    return lines


def side_by_side(before: Result, after: Result) -> list[str]:
    """Lines of a table of what both results have, `before` on the left."""
    table = [("", "questions", str(before["load"]), str(after["load"]))]
    table += rows(before, after)
    widths = [max(len(row[at]) for row in table) for at in range(4)]
    # A long path would push the numbers out of sight.
    widths[2:] = [min(width, 28) for width in widths[2:]]
    return [
        f"{what:<{widths[0]}}  {count:>{widths[1]}}  {old[-widths[2]:]:>{widths[2]}}  "
        f"{new[-widths[3]:]:>{widths[3]}}" for what, count, old, new in table
    ]  # fmt: skip


def rows(before: Result, after: Result) -> list[tuple[str, str, str, str]]:
    """(what, how many, before, after) of everything that both results have."""
    table: list[tuple[str, str, str, str]] = []
    if "recall" in before and "recall" in after:
        table += _recall(before["recall"], after["recall"])
    if "input" in before and "input" in after:
        old, new = before["input"], after["input"]
        tokens = f"{new['tokens']} tok"
        table += [
            ("loss on conversations", tokens, f"{old['loss']:.3f}", f"{new['loss']:.3f}"),
            ("perplexity", tokens, f"{old['perplexity']:.2f}", f"{new['perplexity']:.2f}"),
            ("stops where the reply ends", f"{new['replies']}", share(old["ends"]),
             share(new["ends"])),
            ("would stop elsewhere", tokens, share(old["early"]), share(new["early"])),
        ]  # fmt: skip
    if before.get("history_gain") and after.get("history_gain"):
        old, new = before["history_gain"], after["history_gain"]
        for name in ("gain_over_none", "gain_over_shuffled"):
            table.append((f"history {name.replace('_', ' ')}, nats", str(new["dialogues"]),
                          f"{old[name]:.3f}", f"{new[name]:.3f}"))  # fmt: skip
    return table


def _recall(before: Result, after: Result) -> list[tuple[str, str, str, str]]:
    table = []
    for name, new in {**after["family"], "mean": after["mean"]}.items():
        old = before["mean"] if name == "mean" else before["family"].get(name)
        if old is not None:
            count = str(new.get("dialogues", after["all"]["dialogues"]))
            table.append((f"exact, {name}", count, share(old["exact"]), share(new["exact"])))
    for distance, new in after["distance"].items():
        if old := before["distance"].get(distance):
            table.append((f"exact, {distance} turns back", str(new["dialogues"]),
                          share(old["exact"]), share(new["exact"])))  # fmt: skip
    count = str(after["all"]["dialogues"])
    for name, what in (("value", "right in other words too"), ("stopped", "replies that end")):
        table.append((what, count, share(before["mean"][name]), share(after["mean"][name])))
    return table


def share(value: float | None) -> str:
    """0.125 -> "12.5 %"."""
    return "-" if value is None else f"{100 * value:.1f} %"
