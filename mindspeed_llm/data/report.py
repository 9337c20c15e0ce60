"""Owns the account of what became of every input row; knows no file format and no template.

Every row ends in exactly one bucket: kept, repaired, truncated (repaired or not), over-length, not
mixed in, or the kind of its fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.render import IGNORE, Rendered
from mindspeed_llm.data.turns import Turns

KEPT = "kept"
REPAIRED = "repaired"
TRUNCATED = "truncated"
WRITTEN = (KEPT, REPAIRED, TRUNCATED)
OVER_LENGTH = "over-length"
NOT_MIXED_IN = "not mixed in"
LISTED = 1000


class Made(NamedTuple):
    """What became of an input row that is written.

    Attributes:
        pieces: its rows of ids and labels; more than one only for a plain text that was cut.
        outcome: one of WRITTEN.
        repairs: what was done to its turns.
        turns, tokens: how many of them truncation took.
        made_of: the turns of each piece; nothing where they are not kept.
    """

    pieces: Sequence[Rendered]
    outcome: str = KEPT
    repairs: Sequence[str] = ()
    turns: int = 0
    tokens: int = 0
    made_of: Sequence[Turns] = ()


class BadRow(NamedTuple):
    """A row that was not used. `line` is 1-based: a line of a text file, a row of parquet."""

    file: str
    line: int
    field: str
    reason: str
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.reason}"


@dataclass
class Tally:
    """Counts of some rows; those of chunks add up to those of the whole input.

    Attributes:
        buckets: input rows by what became of them.
        written: rows written; a plain text that was cut makes several.
        repairs: input rows by what was done to their turns.
        tokens, supervised_tokens, longest: over rows that were written.
        dropped_turns, dropped_tokens: what truncation took from them.
        faults: (position, field, reason, kind) of the first rows that were not used.
        columns: columns that occurred in any row.
    """

    buckets: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    written: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    dropped_turns: int = 0
    dropped_tokens: int = 0
    faults: list[tuple[int, str, str, str]] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)

    @property
    def rows(self) -> int:
        """Rows read."""
        return sum(self.buckets.values())

    @property
    def kept(self) -> int:
        """Input rows that are in the data set, as they were, repaired or truncated."""
        return sum(self.buckets[name] for name in WRITTEN)

    @property
    def bad(self) -> int:
        """Rows with a fault; an over-long row and one the mix left out have none."""
        return self.rows - self.kept - self.buckets[OVER_LENGTH] - self.buckets[NOT_MIXED_IN]

    def keep(self, row: Made) -> None:
        """Count a row that is written."""
        self.buckets[row.outcome] += 1
        self.repairs.update(row.repairs)
        self.dropped_turns += row.turns
        self.dropped_tokens += row.tokens
        for ids, labels in row.pieces:
            self.written += 1
            self.tokens += len(ids)
            self.supervised_tokens += len(labels) - labels.count(IGNORE)
            self.longest = max(self.longest, len(ids))

    def leave_out(self, position: int, error: RowError) -> None:
        """Count a row that was not, and remember the first ones."""
        self.buckets[error.kind] += 1
        if len(self.faults) < LISTED:
            self.faults.append((position, error.field, error.reason, error.kind))

    def add(self, other: Tally) -> None:
        """Add the counts of another tally; its faults are kept by the caller, with their file."""
        self.buckets.update(other.buckets)
        self.repairs.update(other.repairs)
        self.written += other.written
        self.tokens += other.tokens
        self.supervised_tokens += other.supervised_tokens
        self.longest = max(self.longest, other.longest)
        self.dropped_turns += other.dropped_turns
        self.dropped_tokens += other.dropped_tokens


@dataclass
class Part:
    """One `--input` value's share: its own buckets, its weight, and rows written (again counted
    where the mix repeats them)."""

    input: str
    weight: float | None = None
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Report:
    """The whole input's account. `listed` holds the first unusable rows in input order."""

    prefix: str
    tally: Tally
    listed: list[BadRow]
    finished: bool
    parts: Sequence[Part] = ()

    def as_json(self) -> dict[str, Any]:
        """What `{prefix}_packed_report.json` holds."""
        tally = self.tally
        return {
            "finished": self.finished,
            "rows": tally.rows,
            "buckets": _sorted(tally.buckets),
            "rejected": tally.bad + tally.buckets[OVER_LENGTH],
            "repairs": _sorted(tally.repairs),
            "written": tally.written,
            "tokens": tally.tokens,
            "supervised_tokens": tally.supervised_tokens,
            "longest": tally.longest,
            "dropped_turns": tally.dropped_turns,
            "dropped_tokens": tally.dropped_tokens,
            "inputs": [{"input": part.input, "weight": part.weight, "rows": part.tally.rows,
                        "written": part.tally.written, "buckets": _sorted(part.tally.buckets)}
                       for part in self.parts],
            "listed": [row._asdict() for row in self.listed],
            "unlisted": tally.bad + tally.buckets[OVER_LENGTH] - len(self.listed),
        }  # fmt: skip

    def lines(self, shown: int = 10) -> Iterable[str]:
        """A table for the terminal, with the first `shown` unusable rows."""
        tally = self.tally
        names = ("supervised tokens", *tally.buckets, *tally.repairs)
        width = max(len(name) for name in names)
        yield f"{'rows read':<{width}}  {tally.rows:>12,}"
        for name, count in sorted(tally.buckets.items(), key=lambda item: (item[0] != KEPT, item)):
            yield f"{name:<{width}}  {count:>12,}  {count / max(1, tally.rows):7.2%}"
        for name, count in sorted(tally.repairs.items()):
            yield f"{name:<{width}}  {count:>12,}"
        yield f"{'rows written':<{width}}  {tally.written:>12,}"
        yield f"{'tokens':<{width}}  {tally.tokens:>12,}"
        share = tally.supervised_tokens / max(1, tally.tokens)
        yield f"{'supervised tokens':<{width}}  {tally.supervised_tokens:>12,}  {share:7.2%}"
        yield f"{'longest row':<{width}}  {tally.longest:>12,}"
        if tally.dropped_turns:
            yield f"{'dropped turns':<{width}}  {tally.dropped_turns:>12,}"
            yield f"{'dropped tokens':<{width}}  {tally.dropped_tokens:>12,}"
        if len(self.parts) > 1:
            for part in self.parts:
                weight = "" if part.weight is None else f" (weight {part.weight:g})"
                yield (f"  {part.input}{weight}: {part.tally.rows:,} rows read, "
                       f"{part.tally.written:,} written")  # fmt: skip
        for row in self.listed[:shown]:
            yield f"  {row}"
        unused = tally.bad + tally.buckets[OVER_LENGTH]
        if unused > shown:
            yield f"  ... {unused - shown:,} more"


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}


def collect(faults: Iterable[BadRow]) -> list[BadRow]:
    """The first unusable rows that a report lists."""
    return [row for row, _ in zip(faults, range(LISTED), strict=False)]
