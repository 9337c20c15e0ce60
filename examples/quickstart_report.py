"""Owns the two small things of the quickstart that are no command: rows of replies that ended by
themselves, and the last page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mindspeed_llm.evaluation.report import side_by_side


def talk(replies: Path, output: Path) -> None:
    """Rows to train on from what `mindspeed-llm generate` wrote: those that were not cut."""
    rows = [json.loads(line) for line in replies.read_text(encoding="utf-8").splitlines()]
    kept = [
        {"messages": [*row["messages"], {"role": "assistant", "content": row["reply"]}]}
        for row in rows
        if row["stop"] == "stop" and row["reply"].strip()
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    part = output.with_suffix(".part")
    part.write_text(lines, encoding="utf-8")
    os.replace(part, output)
    print(f"{output}: {len(kept)} of {len(rows)} replies ended by themselves")


def report(work: Path) -> None:
    """Print the table and both conversations found in the quickstart's directory."""
    after = json.loads((work / "recall_after.json").read_text(encoding="utf-8"))
    print("\nmt-recall, on dialogues with names, items and phrasings that training has not seen:\n")
    before = after["compare"] | {"load": "before"}
    for line in side_by_side(before, after | {"load": "after"}):
        print("  " + line)
    for when in ("before", "after"):
        print(f"\n--- the guide's conversation, {when} tuning\n")
        print((work / f"talk_{when}.txt").read_text(encoding="utf-8").strip())


if __name__ == "__main__":
    {"talk": talk, "report": report}[sys.argv[1]](*map(Path, sys.argv[2:]))
