"""Owns scoring of replies to mt-recall and its table; it knows no model: it is given replies.

Two scores. *Exact*: the reply is one of the answers word for word, but for case and punctuation.
*Value*: in whatever words, it says what the rule of its probe asks for and nothing that is wrong.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mindspeed_llm.evaluation.dialogues import FAMILIES, Dialogue, Probe

_NUMBERS = {word: str(n) for n, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}  # fmt: skip
_UNKNOWN = re.compile(
    r"\b(did not|didn't|have not|haven't|never) (tell|told|say|said|mention|mentioned)\b"
    r"|\b(do not|don't|cannot|can't) (know|remember|recall)\b"
    r"|\bnot (been )?(told|mentioned)\b"
)
NAMES = ("exact", "value", "stopped")


def normalised(text: str) -> str:
    """Lower case; words, numbers and apostrophes inside words, one space between them."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    return " ".join(re.findall(r"\w+(?:'\w+)*", text))


def is_exact(reply: str, answers: Iterable[str]) -> bool:
    """Whether the reply is one of the answers, but for case, spaces and punctuation."""
    return normalised(reply) in {normalised(answer) for answer in answers}


def mentions(reply: str, value: str) -> bool:
    """Whether the words of `value` follow each other in the reply."""
    return f" {normalised(value)} " in f" {normalised(reply)} "


def holds_value(reply: str, probe: Probe) -> bool:
    """Whether the reply is right in its own words, by the rule of the probe.

    holds: every expected value is mentioned, no forbidden one. count: the last number of the reply,
    in digits or as a word up to ten, is the expected one. opens: the first words are the expected
    word, the expected text comes behind it. unknown: it says that it was not told or does not know,
    and mentions no forbidden value.
    """
    if probe.rule == "count":
        words = (_NUMBERS.get(word, word) for word in normalised(reply).split())
        return [word for word in words if word.isdecimal()][-1:] == list(probe.expected)
    if probe.rule == "opens":
        word, text = probe.expected
        start, said = normalised(word) + " ", normalised(reply) + " "
        return said.startswith(start) and mentions(said[len(start) :], text)
    if any(mentions(reply, value) for value in probe.forbidden):
        return False
    if probe.rule == "unknown":
        return _UNKNOWN.search(normalised(reply)) is not None
    return all(mentions(reply, value) for value in probe.expected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A dialogue with the replies to its probes, in order.

    It is right (`exact`, `value`) if all of them are: a refusal counts only together with the
    answer to what was told. `stopped`: all ended by themselves.
    """

    dialogue: Dialogue
    replies: tuple[str, ...]
    exact: bool
    value: bool
    stopped: bool


def score(dialogue: Dialogue, replies: Sequence[tuple[str, bool]]) -> Outcome:
    """Score (reply, whether it ended by itself) to each probe of the dialogue."""
    probes = [turn.probe for turn in dialogue.turns if turn.probe is not None]
    pairs = [(text, probe) for (text, _), probe in zip(replies, probes, strict=True)]
    return Outcome(
        dialogue=dialogue,
        replies=tuple(text for text, _ in replies),
        exact=all(is_exact(text, probe.answers) for text, probe in pairs),
        value=all(
            is_exact(text, probe.answers) or holds_value(text, probe) for text, probe in pairs
        ),
        stopped=all(ended for _, ended in replies),
    )


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares of all, of each family, of each distance, and of each pair of the two; JSON-ready.

    `mean` is the mean of the families, which are equally important however many dialogues each has.
    """
    families = [name for name in FAMILIES if any(o.dialogue.family == name for o in outcomes)]
    distances = sorted({o.dialogue.distance for o in outcomes})

    def of(keep: Callable[[Dialogue], bool]) -> dict[str, float]:
        return _shares([o for o in outcomes if keep(o.dialogue)])

    by_family = {name: of(lambda d, name=name: d.family == name) for name in families}
    pairs = {
        name: {
            str(distance): of(lambda d, f=name, n=distance: d.family == f and d.distance == n)
            for distance in distances
        }
        for name in families
    }
    mean = {name: sum(row[name] for row in by_family.values()) / len(families) for name in NAMES}
    return {
        "all": _shares(outcomes),
        "mean": mean,
        "family": by_family,
        "distance": {str(n): of(lambda d, n=n: d.distance == n) for n in distances},
        "distractors": {
            str(n): of(lambda d, n=n: d.distractors == n)
            for n in sorted({o.dialogue.distractors for o in outcomes})
        },
        "family_and_distance": pairs,
    }


def _shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    count = len(outcomes)
    shares = {name: sum(getattr(o, name) for o in outcomes) / max(count, 1) for name in NAMES}
    return {"dialogues": count, **shares}


def table(result: dict[str, Any]) -> list[str]:
    """Lines of a table from `summary`: exact answers by family and distance, in percent."""
    head = f"{'exact, %':<14}" + "".join(f"{'d=' + d:>6}" for d in result["distance"])
    lines = [head + f"{'all':>7}{'value':>7}{'n':>6}"]
    for name, row in result["family_and_distance"].items():
        lines.append(f"{name:<14}" + _cells(row.values()) + _totals(result["family"][name]))
    lines.append(
        f"{'mean':<14}" + _cells(result["distance"].values())
        + _totals(result["mean"] | {"dialogues": result["all"]["dialogues"]})
    )  # fmt: skip
    return lines


def _cells(shares: Iterable[dict[str, float]]) -> str:
    return "".join(f"{100 * s['exact']:6.0f}" if s["dialogues"] else f"{'-':>6}" for s in shares)


def _totals(total: dict[str, float]) -> str:
    return f"{100 * total['exact']:7.1f}{100 * total['value']:7.1f}{total['dialogues']:6d}"
