"""Tests of mindspeed_llm.data.report."""

from __future__ import annotations

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.render import IGNORE, Rendered
from mindspeed_llm.data.report import (
    NOT_MIXED_IN,
    OVER_LENGTH,
    REPAIRED,
    TRUNCATED,
    BadRow,
    Made,
    Part,
    Report,
    Tally,
    collect,
)


def made(length: int, targets: int, **more: object) -> Made:
    return Made([Rendered([7] * length, [IGNORE] * (length - targets) + [7] * targets)], **more)


def tally(kept: int, *kinds: str) -> Tally:
    found = Tally()
    for index in range(kept):
        found.keep(made(10 + index, 4))
    for position, kind in enumerate(kinds):
        found.leave_out(position, RowError("output", "why", kind=kind))
    return found


def test_every_row_is_in_one_bucket_and_sums_hold():
    total = tally(2, "empty answer")
    total.add(tally(3, "empty answer", OVER_LENGTH))
    assert total.rows == 2 + 1 + 3 + 2 == sum(total.buckets.values())
    assert (total.kept, total.bad) == (5, 2)
    assert (total.tokens, total.supervised_tokens, total.longest) == (21 + 33, 20, 12)


def test_the_table_names_every_bucket_and_the_first_rows():
    listed = [BadRow("a.json", 7, "output", "null", "empty answer")]
    report = Report("out", tally(99, "empty answer"), listed, finished=True)
    table = "\n".join(report.lines())
    assert "rows read" in table and "100" in table and "99.00%" in table
    assert "empty answer" in table and "a.json:7: output: null" in table


def test_what_is_not_shown_is_said():
    listed = [BadRow("a.json", n, "output", "null", "empty answer") for n in range(12)]
    report = Report("out", tally(1, *["empty answer"] * 15), listed, finished=False)
    assert "... 13 more" in "\n".join(report.lines(shown=2))
    data = report.as_json()
    assert (len(data["listed"]), data["unlisted"], data["finished"]) == (12, 3, False)
    assert data["buckets"] == {"empty answer": 15, "kept": 1}


def test_lists_are_bounded_but_counts_are_not():
    many = tally(0, *["not text"] * 3000)
    assert len(many.faults) == 1000 and many.buckets["not text"] == 3000
    assert len(collect(BadRow("f", n, "x", "y", "z") for n in range(5000))) == 1000


def test_truncated_rows_are_written_rows():
    found = tally(1)
    found.keep(made(7, 3, outcome=TRUNCATED, turns=4, tokens=20))
    assert found.buckets == {"kept": 1, "truncated": 1} and (found.kept, found.bad) == (2, 0)
    total = Tally()
    total.add(found)
    assert (total.dropped_turns, total.dropped_tokens) == (4, 20)
    assert Report("out", total, [], finished=True).as_json()["dropped_turns"] == 4


def test_repairs_pieces_and_inputs_are_counted():
    found = Tally()
    found.keep(made(5, 2, outcome=REPAIRED, repairs=("turns joined",)))
    row = made(4, 3)
    found.keep(Made([*row.pieces, *row.pieces]))
    found.buckets[NOT_MIXED_IN] += 3
    assert (found.kept, found.written, found.bad, found.rows) == (2, 3, 0, 5)
    parts = [Part("a", 1.0, found), Part("b", 3.0)]
    report = Report("out", found, [], finished=True, parts=parts)
    data = report.as_json()
    assert data["repairs"] == {"turns joined": 1} and data["rejected"] == data["unlisted"] == 0
    first = data["inputs"][0]
    assert first.pop("buckets") == {"kept": 1, "not mixed in": 3, "repaired": 1}
    assert first == {"input": "a", "weight": 1.0, "rows": 5, "written": 3}
    table = "\n".join(report.lines())
    assert "turns joined" in table and "b (weight 3): 0 rows read, 0 written" in table
