"""Tests of mindspeed_llm.data.work: chunks to shards; whole runs are in test_prepare."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest

from mindspeed_llm.data import texts
from mindspeed_llm.data.inputs import find_inputs
from mindspeed_llm.data.plain_text import PlainTextRows, PlainTextSource
from mindspeed_llm.data.readers import ChunkReader, split_chunks
from mindspeed_llm.data.work import Work, tallies
from mindspeed_llm.data.writer import CONTINUED, outcomes, row_lengths


@pytest.fixture
def work(tmp_path, tokenizer):
    def make(**changes):
        source = PlainTextSource("text")
        maker = PlainTextRows(source, tokenizer, append_eod=True, seq_length=6, split=True)
        return Work(maker, tmp_path, ChunkReader(source.columns), **changes)

    return make


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 300)
    rows = [{"text": "Hello, how are you?" * (i % 3), "other": i} for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{oops\n")
    return split_chunks(find_inputs([str(path)])[0])


def test_shards_hold_what_tallies_count(work, chunks):
    work = work()
    found = list(tallies(work, chunks, 1))
    shards = [work.shard(number) for number in range(len(chunks))]
    lengths, codes = row_lengths(shards), outcomes(shards)
    assert sum(t.rows for t in found) == 41 and sum(t.kept for t in found) == 26
    assert sum(t.written for t in found) == len(lengths) == len(codes)
    assert sum(t.tokens for t in found) == lengths.sum() and lengths.max() <= 6
    assert int((codes != CONTINUED).sum()) == 26
    assert all(t.columns == {"text", "other"} for t in found if t.kept)
    assert {f[3] for t in found for f in t.faults} == {"empty text", "not JSON"}
    assert all(t.faults == sorted(t.faults) for t in found)


def test_a_strict_chunk_stops_at_its_first_fault(work, chunks):
    tally = work(strict=True).run(0, chunks[0])
    assert tally.rows == 1 and len(tally.faults) == 1


def test_processes_give_the_same_shards_in_order(work, chunks):
    alone = work()
    first = list(tallies(alone, chunks, 1))
    ids = np.concatenate([np.fromfile(alone.shard(n).path("input_ids"), "<i4")
                          for n in range(len(chunks))])  # fmt: skip
    together = list(tallies(alone, chunks, 2))
    assert together == first
    again = np.concatenate([np.fromfile(alone.shard(n).path("input_ids"), "<i4")
                            for n in range(len(chunks))])  # fmt: skip
    assert np.array_equal(ids, again)


def test_the_search_for_cycles_is_as_before_afterwards(work, chunks, monkeypatch):
    before, seen = gc.get_threshold(), []
    real = Work.run
    monkeypatch.setattr(Work, "run", lambda *a: seen.append(gc.get_threshold()[0]) or real(*a))
    running = tallies(work(), chunks, 1)
    next(running)
    running.close()
    assert gc.get_threshold() == before and seen[0] > before[0] and gc.get_freeze_count() == 0
