"""Owns the account of what became of every input row; knows no file format and no template.

Every row ends in exactly one bucket: kept, truncated, over-length, or the kind of its fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mindspeed_llm.data.messages import RowError

KEPT = "kept"
TRUNCATED = "truncated"
OVER_LENGTH = "over-length"
LISTED = 1000


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
        buckets: rows by what became of them.
        tokens, supervised_tokens, longest: over rows that were written.
        dropped_turns, dropped_tokens: what truncation took from them.
        faults: (position, field, reason, kind) of the first rows that were not used.
        columns: columns that occurred in any row.
    """

    buckets: Counter[str] = field(default_factory=Counter)
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
        """Rows written, whole or truncated."""
        return self.buckets[KEPT] + self.buckets[TRUNCATED]

    @property
    def bad(self) -> int:
        """Rows with a fault; an over-long row has none."""
        return self.rows - self.kept - self.buckets[OVER_LENGTH]

    def keep(self, tokens: int, supervised: int, *, turns: int = 0, cut: int = 0) -> None:
        """Count a row that was written after `turns` turns with `cut` tokens were dropped."""
        self.buckets[TRUNCATED if turns else KEPT] += 1
        self.dropped_turns += turns
        self.dropped_tokens += cut
        self.tokens += tokens
        self.supervised_tokens += supervised
        self.longest = max(self.longest, tokens)

    def leave_out(self, position: int, error: RowError) -> None:
        """Count a row that was not, and remember the first ones."""
        self.buckets[error.kind] += 1
        if len(self.faults) < LISTED:
            self.faults.append((position, error.field, error.reason, error.kind))

    def add(self, other: Tally) -> None:
        """Add the counts of another tally; its faults are kept by the caller, with their file."""
        self.buckets.update(other.buckets)
        self.tokens += other.tokens
        self.supervised_tokens += other.supervised_tokens
        self.longest = max(self.longest, other.longest)
        self.dropped_turns += other.dropped_turns
        self.dropped_tokens += other.dropped_tokens


@dataclass(frozen=True)
class Report:
    """The whole input's account. `listed` holds the first unusable rows in input order."""

    prefix: str
    tally: Tally
    listed: list[BadRow]
    finished: bool

    def as_json(self) -> dict[str, Any]:
        """What `{prefix}_packed_report.json` holds."""
        tally = self.tally
        return {
            "finished": self.finished,
            "rows": tally.rows,
            "buckets": dict(sorted(tally.buckets.items())),
            "tokens": tally.tokens,
            "supervised_tokens": tally.supervised_tokens,
            "longest": tally.longest,
            "dropped_turns": tally.dropped_turns,
            "dropped_tokens": tally.dropped_tokens,
            "listed": [row._asdict() for row in self.listed],
            "unlisted": tally.rows - tally.kept - len(self.listed),
        }

    def lines(self, shown: int = 10) -> Iterable[str]:
        """A table for the terminal, with the first `shown` unusable rows."""
        tally = self.tally
        width = max(len(name) for name in ("supervised tokens", *tally.buckets))
        yield f"{'rows read':<{width}}  {tally.rows:>12,}"
        for name, count in sorted(tally.buckets.items(), key=lambda item: (item[0] != KEPT, item)):
            yield f"{name:<{width}}  {count:>12,}  {count / max(1, tally.rows):7.2%}"
        yield f"{'tokens':<{width}}  {tally.tokens:>12,}"
        share = tally.supervised_tokens / max(1, tally.tokens)
        yield f"{'supervised tokens':<{width}}  {tally.supervised_tokens:>12,}  {share:7.2%}"
        yield f"{'longest row':<{width}}  {tally.longest:>12,}"
        if tally.dropped_turns:
            yield f"{'dropped turns':<{width}}  {tally.dropped_turns:>12,}"
            yield f"{'dropped tokens':<{width}}  {tally.dropped_tokens:>12,}"
        for row in self.listed[:shown]:
            yield f"  {row}"
        if tally.rows - tally.kept > shown:
            yield f"  ... {tally.rows - tally.kept - shown:,} more"


def collect(faults: Iterable[BadRow]) -> list[BadRow]:
    """The first unusable rows that a report lists."""
    return [row for row, _ in zip(faults, range(LISTED), strict=False)]
