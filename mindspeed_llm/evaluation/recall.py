"""Owns scoring of answers to memory dialogues and the tables of it; it knows no model: it is given
replies."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from mindspeed_llm.evaluation.dialogues import KINDS, Dialogue


def normalised(text: str) -> str:
    """Lower case, one space between words, no marks at the ends, one kind of apostrophe."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    return " ".join(text.split()).strip(" .!\"'")


def is_exact(reply: str, answer: str) -> bool:
    """Whether the reply is the expected sentence, but for case, spaces and marks at its ends."""
    return normalised(reply) == normalised(answer)


def holds_value(reply: str, expected: Sequence[str], forbidden: Sequence[str]) -> bool:
    """Whether the reply mentions every expected value, as words, and no forbidden one."""
    text = normalised(reply).replace("didn't", "did not")

    def mentions(value: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(normalised(value))}(?!\w)", text) is not None

    return all(map(mentions, expected)) and not any(map(mentions, forbidden))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One scored reply. `exact` and `value` are the two scores; `stopped`: it ended by itself."""

    dialogue: Dialogue
    reply: str
    exact: bool
    value: bool
    stopped: bool


def score(dialogue: Dialogue, reply: str, *, stopped: bool) -> Outcome:
    """Score a reply to the dialogue's question."""
    return Outcome(
        dialogue=dialogue, reply=reply, stopped=stopped, exact=is_exact(reply, dialogue.answer),
        value=holds_value(reply, dialogue.expected, dialogue.forbidden),
    )  # fmt: skip


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares of all, of each kind, of each distance, and of each pair of the two; JSON-ready."""
    kinds = [kind for kind in KINDS if any(o.dialogue.kind == kind for o in outcomes)]
    distances = sorted({o.dialogue.distance for o in outcomes})

    def of(keep: Callable[[Dialogue], bool]) -> dict[str, float]:
        return _shares([o for o in outcomes if keep(o.dialogue)])

    pairs = {
        kind: {
            str(d): of(lambda x, kind=kind, d=d: x.kind == kind and x.distance == d)
            for d in distances
        }
        for kind in kinds
    }
    return {
        "all": _shares(outcomes),
        "kind": {kind: of(lambda x, kind=kind: x.kind == kind) for kind in kinds},
        "distance": {str(d): of(lambda x, d=d: x.distance == d) for d in distances},
        "kind_and_distance": pairs,
    }


def _shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    count = len(outcomes)
    names = ("exact", "value", "stopped")
    shares = {name: sum(getattr(o, name) for o in outcomes) / max(count, 1) for name in names}
    return {"dialogues": count, **shares}


def table(result: dict[str, Any]) -> list[str]:
    """Lines of a table from `summary`: exact match by kind and distance, in percent."""
    distances = list(result["distance"])
    head = f"{'exact match, %':<16}" + "".join(f"{'d=' + d:>6}" for d in distances)
    lines = [head + f"{'all':>7}{'value':>8}{'n':>6}"]
    for kind, row in result["kind_and_distance"].items():
        total = result["kind"][kind]
        lines.append(f"{kind:<16}" + _cells(row.values()) + _totals(total))
    lines.append(f"{'all':<16}" + _cells(result["distance"].values()) + _totals(result["all"]))
    return lines


def _cells(shares: Any) -> str:
    return "".join(f"{100 * s['exact']:6.0f}" if s["dialogues"] else f"{'-':>6}" for s in shares)


def _totals(total: dict[str, float]) -> str:
    return f"{100 * total['exact']:7.1f}{100 * total['value']:8.1f}{total['dialogues']:6d}"
