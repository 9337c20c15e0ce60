"""Owns the quickstart's closing table; reads the two result files of `mindspeed-llm evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def rows(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """(what, dialogues, before, after): recall of each kind and of all, then ordinary loss."""
    table = []
    kinds = {**before["recall"]["kind"], "all": before["recall"]["all"]}
    later = {**after["recall"]["kind"], "all": after["recall"]["all"]}
    for kind, old in kinds.items():
        new = later[kind]
        table.append((f"exact answers, {kind.replace('_', ' ')}", old["dialogues"],
                      f"{100 * old['exact']:.1f} %", f"{100 * new['exact']:.1f} %"))  # fmt: skip
    old, new = before["recall"]["all"], after["recall"]["all"]
    table.append(("the value itself is named", old["dialogues"],
                  f"{100 * old['value']:.1f} %", f"{100 * new['value']:.1f} %"))  # fmt: skip
    old, new = before["ordinary"], after["ordinary"]
    table.append(("loss on ordinary talk", old["dialogues"], f"{old['loss']:.3f}",
                  f"{new['loss']:.3f}"))  # fmt: skip
    return table


def main(work: Path) -> None:
    """Print the table and both conversations found in the quickstart's directory."""
    before, after = (
        json.loads((work / f"recall_{when}.json").read_text(encoding="utf-8"))
        for when in ("before", "after")
    )
    print("\nMemory, on dialogues with names, items and phrasings that training has not seen:\n")
    print(f"  {'':<36}{'dialogues':>10}{'before':>10}{'after':>10}")
    for what, count, old, new in rows(before, after):
        print(f"  {what:<36}{count:>10}{old:>10}{new:>10}")
    for when in ("before", "after"):
        print(f"\n--- the guide's conversation, {when} tuning\n")
        print((work / f"talk_{when}.txt").read_text(encoding="utf-8").strip())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
