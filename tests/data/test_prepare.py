"""Tests of mindspeed_llm.data.prepare: whole runs, rows accounted for, nothing left half-done."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data import readers, texts, work
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.prepare import prepare
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import DataError, TemplateError

ROWS = [{"instruction": f"Question {i}?", "input": "x" * (i % 3), "output": f"Answer {i}.",
         "histories": [[f"Before {i}?", "Yes."]] * (i % 4)} for i in range(300)]  # fmt: skip


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def config(tmp_path, tiny_tokenizer_dir):
    def make(source, **changes):
        options = {"prompt_type": "gemma", "map_keys": {"history": "histories"}, **changes}
        return PreprocessConfig(
            input=(str(source),), tokenizer_name_or_path=tiny_tokenizer_dir,
            output_prefix=tmp_path / "out" / "set", **options)  # fmt: skip

    return make


def digests(config):
    files = DatasetFiles(config.output_prefix)
    paths = (*files.six, files.manifest, files.report)
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def left(config):
    folder = config.output_prefix.parent
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.jsonl"])
def test_the_six_files_hold_every_row_in_order(tmp_path, config, renderer_of, name):
    settings = config(write(tmp_path / name))
    report = prepare(settings)
    assert report.tally.kept == 300 and report.tally.bad == 0
    tokenizer = load_tokenizer(settings.tokenizer_name_or_path)
    dataset = SFTDataset(settings.output_prefix, tokenizer_sha256=tokenizer.sha256)
    for index, row in enumerate(ROWS):
        texts = [text for pair in row["histories"] for text in pair]
        user = "\n".join(t for t in (row["instruction"], row["input"]) if t)
        expected = renderer_of("gemma").render(Conversation.of(*texts, user, row["output"]))
        assert dataset[index]["input_ids"].tolist() == expected.ids
        assert dataset[index]["labels"].tolist() == expected.labels
    manifest = dataset.manifest
    assert (
        manifest.tokens == int(dataset.lengths.sum()) and manifest.longest == dataset.lengths.max()
    )
    assert (manifest.template, manifest.counts) == ("gemma", {"kept": 300})
    assert len(left(settings)) == 9  # six files, turns, manifest, report; no temporaries


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, config, monkeypatch, name):
    rows = [*ROWS, {"instruction": "no answer", "input": "", "output": "", "histories": []}]
    source = write(tmp_path / name, rows)
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(readers, "_CHUNK_ROWS", 64)
    prepare(config(source))
    alone = digests(config(source))
    prepare(config(source, workers=2))
    assert digests(config(source)) == alone


def test_over_long_rows_are_left_out_and_an_exact_fit_is_kept(tmp_path, config):
    source = write(tmp_path / "a.jsonl")
    longest = prepare(config(source)).tally.longest
    assert prepare(config(source, seq_length=longest)).tally.kept == 300
    report = prepare(config(source, seq_length=longest - 1))
    assert report.tally.buckets["over-length"] > 0 and report.tally.bad == 0
    assert report.tally.kept + report.tally.buckets["over-length"] == 300
    assert report.tally.longest == longest - 1
    with pytest.raises(DataError, match="no row is left"):
        prepare(config(source, seq_length=2))


@pytest.mark.parametrize("policy", ["oldest-turns", "newest-turns"])
def test_truncated_rows_are_whole_conversations(tmp_path, config, renderer_of, policy):
    settings = config(write(tmp_path / "a.jsonl"), seq_length=45, truncation=policy)
    report = prepare(settings)
    tally = report.tally
    assert tally.buckets["truncated"] > 0 and tally.rows == 300
    assert tally.dropped_turns >= 2 * tally.buckets["truncated"] and tally.dropped_tokens > 0
    assert "dropped turns" in "\n".join(report.lines())
    dataset = SFTDataset(settings.output_prefix, tokenizer_sha256=None)
    assert len(dataset) == tally.kept and dataset.lengths.max() <= 45
    renderer = renderer_of("gemma")
    for index in range(len(dataset)):
        row = dataset[index]
        ends = row["labels"] == renderer.end_id
        # One end-of-turn of the user and one of the assistant a pair; only the latter is trained.
        assert int(ends.sum()) * 2 == int((row["input_ids"] == renderer.end_id).sum())
        text = renderer.tokenizer.decode(row["input_ids"].tolist())
        last = text.split("<start_of_turn>user\n")[-1]
        assert last.startswith("Question" if policy == "oldest-turns" else ("Before", "Question"))


def test_over_long_rows_can_be_an_error(tmp_path, config):
    source = write(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="rows have more tokens than --seq-length 45"):
        prepare(config(source, seq_length=45, truncation="error"))
    assert left(config(source)) == ["set_packed_refused.json"]


def with_bad(tmp_path, good, *bad):
    lines = [json.dumps(r) for r in ROWS[:good]] + [
        b if isinstance(b, str) else json.dumps(b) for b in bad
    ]
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_bad_rows_are_reported_and_never_written(tmp_path, config):
    source = with_bad(tmp_path, 100, "{oops", {"instruction": "q", "output": None})
    report = prepare(config(source))
    assert report.tally.buckets == {"kept": 100, "not JSON": 1, "empty answer": 1}
    assert [str(row).split(": ")[:2] for row in report.listed] == [
        [f"{source}:101", "(row)"], [f"{source}:102", "output"]]  # fmt: skip
    written = json.loads(DatasetFiles(config(source).output_prefix).report.read_text())
    assert written["rows"] == 102 and written["listed"][1]["reason"] == "null"
    assert len(SFTDataset(config(source).output_prefix, tokenizer_sha256=None)) == 100


def test_too_many_bad_rows_write_a_report_but_no_data_set(tmp_path, config):
    source = with_bad(tmp_path, 10, {"instruction": "q", "output": None})
    with pytest.raises(DataError, match="1 of 11 rows cannot be used, more than 5%"):
        prepare(config(source))
    assert left(config(source)) == ["set_packed_refused.json"]
    assert prepare(config(source, on_bad_row="skip")).tally.kept == 10


def test_any_bad_row_can_be_an_error(tmp_path, config):
    source = with_bad(tmp_path, 100, {"instruction": "q", "output": None})
    with pytest.raises(DataError, match=r"1 of 101 rows(.|\n)*bad.jsonl:101: output: null"):
        prepare(config(source, on_bad_row="error"))
    assert left(config(source)) == ["set_packed_refused.json"]


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.jsonl"])
def test_a_mapped_column_that_no_row_has_is_an_error(tmp_path, config, name):
    source = write(tmp_path / name)
    with pytest.raises(DataError, match="a.*no column 'past' in the whole file.*histories"):
        prepare(config(source, map_keys={"history": "past"}))
    assert left(config(source)) == []


def test_a_column_that_only_some_rows_lack_is_none(tmp_path, config):
    rows = [
        {k: v for k, v in row.items() if k != "histories" or i % 2} for i, row in enumerate(ROWS)
    ]
    assert prepare(config(write(tmp_path / "a.jsonl", rows))).tally.kept == 300


def test_an_input_without_rows_is_an_error(tmp_path, config):
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.jsonl").write_text("\n\n")
    for name in ("a.json", "b.jsonl"):
        with pytest.raises(DataError, match="no rows"):
            prepare(config(tmp_path / name))


def test_a_new_run_replaces_an_older_one_and_a_refused_one_leaves_it_alone(tmp_path, config):
    settings = config(write(tmp_path / "a.jsonl"))
    prepare(settings)
    before = digests(settings)
    write(tmp_path / "a.jsonl", ROWS[:200])
    prepare(settings)
    assert digests(settings) != before
    with_bad(tmp_path, 1, "{").replace(tmp_path / "a.jsonl")
    before, names = digests(settings), left(settings)
    with pytest.raises(DataError, match="cannot be used"):
        prepare(settings)
    assert digests(settings) == before and left(settings) == sorted(
        [*names, "set_packed_refused.json"]
    )
    prepare(config(write(tmp_path / "b.jsonl")))
    assert left(settings) == names


def test_a_template_that_differs_from_the_tokenizers_stops_before_anything_is_touched(
    tmp_path, config, make_tokenizer_dir, jinja
):
    source = write(tmp_path / "a.jsonl")
    prepare(config(source))
    before = digests(config(source))
    qwen = make_tokenizer_dir(tmp_path / "qwen", chat_template=jinja["qwen"])
    values = {k: v for k, v in vars(config(source, prompt_type="chatml")).items()}
    with pytest.raises(TemplateError, match="differs"):
        prepare(PreprocessConfig(**{**values, "tokenizer_name_or_path": qwen}))
    assert digests(config(source)) == before
    unchecked = {**values, "tokenizer_name_or_path": qwen, "verify_template": False}
    assert prepare(PreprocessConfig(**unchecked)).tally.kept == 300


def test_the_tokenizers_own_template_gives_the_same_rows(
    tmp_path, config, make_tokenizer_dir, jinja
):
    source = write(tmp_path / "a.jsonl")
    directory = make_tokenizer_dir(tmp_path / "t", chat_template=jinja["gemma"])
    values = {**vars(config(source)), "tokenizer_name_or_path": directory}
    prepare(PreprocessConfig(**values))
    expected = digests(config(source))[:6]
    prepare(PreprocessConfig(**{**values, "prompt_type": "hf"}))
    assert digests(config(source))[:6] == expected


def test_progress_reaches_the_end(tmp_path, config, monkeypatch):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 4096)
    seen = []
    prepare(config(write(tmp_path / "a.jsonl")), seen.append)
    assert len(seen) > 3 and seen[-1].done == seen[-1].total and seen[-1].rows == 300
    assert [p.done for p in seen] == sorted(p.done for p in seen) and seen[-1].eta == 0


def test_a_worker_that_dies_is_an_error(tmp_path, config, monkeypatch):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(work.ProcessPoolExecutor, "map",
                        lambda pool, *_: iter([pool.submit(os._exit, 1).result()]))  # fmt: skip
    with pytest.raises(DataError, match="a worker process died"):
        prepare(config(write(tmp_path / "a.jsonl"), workers=2))
    assert left(config(tmp_path)) == []


def killed(settings, renames):
    """Prepare in a process that kills itself while it reads (-1) or before a further rename."""
    child = os.fork()
    if child == 0:
        rename, left = os.replace, iter(range(renames))
        die = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
        os.replace = lambda *paths: rename(*paths) if next(left, None) is not None else die()
        try:
            prepare(settings, None if renames >= 0 else lambda _: die())
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_one_works(tmp_path, config):
    source, small = write(tmp_path / "a.jsonl"), write(tmp_path / "small.jsonl", ROWS[:5])
    settings = config(source)
    files = DatasetFiles(settings.output_prefix)
    for renames in (-1, 0, 1, 3, 7):
        prepare(config(small))
        before = digests(settings)
        assert killed(settings, renames) == -signal.SIGKILL
        if renames < 0:
            assert digests(settings) == before  # the older data set is untouched
        else:
            assert not files.manifest.exists()
            with pytest.raises(DataError, match="did not finish|missing"):
                Manifest.read(files)
    assert prepare(settings).tally.kept == 300
    assert len(left(settings)) == 9


def test_kill_minus_nine_amid_the_work_of_workers(tmp_path, config):
    """The command itself, killed from outside while its workers write; they end with it."""
    rows = ROWS * (40_000 // len(ROWS))
    settings = config(write(tmp_path / "a.jsonl", rows), workers=2)
    files = DatasetFiles(settings.output_prefix)
    command = [sys.executable, "-m", "mindspeed_llm.cli.main", "preprocess", "--input",
               *settings.input, "--tokenizer-name-or-path", settings.tokenizer_name_or_path,
               "--output-prefix", settings.output_prefix, "--prompt-type", "gemma", "--workers",
               "2", "--map-keys", '{"history": "histories"}']  # fmt: skip
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(60_000):
        if any(path.stat().st_size for path in files.scratch.glob("shard-*.labels")):
            break
        assert run.poll() is None
        time.sleep(0.002)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not any(path.exists() for path in (files.manifest, files.report, *files.six))
    with pytest.raises(DataError, match="no manifest|missing|did not finish"):
        Manifest.read(files)
    for _ in range(6_000):
        with (files.scratch / "lock").open() as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.01)  # the lock is free once the workers have ended too
    assert prepare(config(write(tmp_path / "a.jsonl", ROWS))).tally.kept == len(ROWS)
    assert len(left(settings)) == 9


VALUES = (
    "", " ", None, 0, 1.5, True, [], {}, "text", "x <end_of_turn> {content}", "\x00", "\r\n",
    "\ud800", [["A?", "a."]], '[["A?", "a."]]', [["A?"]], [[None, "a."]], {"a": []}, "[" * 2000,
    "\U0001f600", 10**400, float("nan"), [["A?", "a."], 7],
)  # fmt: skip
RAW = ("", "null", "[]", "{", '{"instruction": "a"', '"x"', '{"instruction": NaN}', "\x00", "{}}")


def test_whatever_rows_hold_each_ends_in_one_bucket(tmp_path, config, renderer_of):
    rng = random.Random(17)
    path = tmp_path / "fuzz.jsonl"
    rows = 0
    with path.open("w", encoding="utf-8", errors="replace") as file:
        for number in range(3000):
            row = dict(ROWS[number % 300])
            for column in rng.sample(tuple(row), rng.randint(0, 2)):
                row[column] = rng.choice(VALUES)
            if rng.random() < 0.2:
                row.pop(rng.choice(tuple(row)))
            line = rng.choice(RAW) if rng.random() < 0.1 else json.dumps(row)
            rows += bool(line.strip())
            file.write(line + "\n")
    settings = config(path, on_bad_row="skip", seq_length=120)
    tally = prepare(settings).tally
    assert tally.rows == rows == sum(tally.buckets.values()) and tally.bad > 300
    dataset = SFTDataset(settings.output_prefix, tokenizer_sha256=None)
    assert len(dataset) == tally.kept > 1000
    end = renderer_of("gemma").end_id
    for index in range(len(dataset)):
        ids, labels = dataset[index]["input_ids"], dataset[index]["labels"]
        assert bool(((labels == -100) | (labels == ids)).all())
        trained = labels[labels != -100]
        assert int(trained[-1]) == end and len(trained) > int((trained == end).sum())
        assert int((ids == end).sum()) == 2 * int((trained == end).sum())


def test_faults_are_held_up_to_what_is_listed(tmp_path, config):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + "{oops\n" * 150_000)
    report = prepare(config(path, on_bad_row="skip"))
    assert report.tally.buckets["not JSON"] == 150_000 and len(report.listed) == 1000
    assert [row.line for row in report.listed] == list(range(2, 1002))


def raw(settings, key):
    files = DatasetFiles(settings.output_prefix)
    return np.fromfile(files.data(key), "<i4").reshape(-1, settings.seq_length)


@pytest.mark.parametrize("multiple", [1, 8])
def test_packed_rows_hold_every_conversation_once_and_whole(
    tmp_path, config, renderer_of, multiple
):
    settings = config(write(tmp_path / "a.jsonl"), seq_length=256, pack=True,
                      pad_to_multiple_of=multiple)  # fmt: skip
    report = prepare(settings)
    ids, labels, segments = (raw(settings, k) for k in ("input_ids", "labels", "attention_mask"))
    pad = load_tokenizer(settings.tokenizer_name_or_path).pad_id
    assert (ids[segments == 0] == pad).all() and (labels[segments == 0] == -100).all()
    found = []
    for row in range(len(ids)):
        for number in range(1, segments[row].max() + 1):
            at = np.flatnonzero(segments[row] == number)
            assert at[0] % multiple == 0 and at[-1] - at[0] == len(at) - 1
            found.append((ids[row][at].tolist(), labels[row][at].tolist()))
    renderer = renderer_of("gemma")
    expected = []
    for row in ROWS:
        texts = [text for pair in row["histories"] for text in pair]
        user = "\n".join(t for t in (row["instruction"], row["input"]) if t)
        rendered = renderer.render(Conversation.of(*texts, user, row["output"]))
        expected.append((rendered.ids, rendered.labels))
    assert sorted(found) == sorted(expected)
    manifest = Manifest.read(DatasetFiles(settings.output_prefix))
    assert manifest.packed and manifest.rows == len(ids) == manifest.packing.rows
    assert (manifest.packing.capacity, manifest.packing.multiple) == (256, multiple)
    assert manifest.packing.segments == 300 == report.tally.kept
    assert manifest.tokens == (segments != 0).sum()
    assert manifest.packing.efficiency == (segments != 0).mean()
    assert manifest.supervised_tokens == (labels != -100).sum()


def test_packed_bytes_are_the_same_for_any_workers(tmp_path, config, monkeypatch):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 4096)
    source = write(tmp_path / "a.jsonl")
    seen = []
    for workers in (1, 2):
        settings = config(source, seq_length=128, pack=True, workers=workers)
        prepare(settings)
        seen.append(digests(settings))
    assert seen[0] == seen[1]
