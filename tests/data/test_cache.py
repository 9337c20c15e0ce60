"""Tests of mindspeed_llm.data.cache: a data set is prepared once, and found by its content."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil

import pytest

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data import cache
from mindspeed_llm.data.cache import is_raw, prepared
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.errors import DataError, UserError

ROWS = [{"instruction": f"Number {n}?", "input": "", "output": f"It is {n}."} for n in range(30)]


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "dialogues.jsonl", ROWS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(source, tokenizer, **changes):
    options = {"input": (str(source),), "tokenizer_name_or_path": tokenizer,
               "output_prefix": source, "prompt_type": "gemma", **changes}  # fmt: skip
    return PreprocessConfig(**options)


@pytest.fixture
def runs(monkeypatch):
    """Counts how often something is really prepared."""
    made = []
    real = cache.prepare
    monkeypatch.setattr(cache, "prepare", lambda *a: made.append(a[0].output_prefix) or real(*a))
    return made


def rows_of(prefix):
    return Manifest.read(DatasetFiles(prefix)).rows


def test_the_second_run_finds_what_the_first_made(source, tmp_path, tiny_tokenizer_dir, runs):
    first = prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    assert prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept") == first
    moved = shutil.copy(source, tmp_path / "again.jsonl")
    os.utime(moved, (0, 0))
    other_name = prepared(settings(moved, tiny_tokenizer_dir), tmp_path / "kept")
    assert other_name.name.split("-")[1] == first.name.split("-")[1]
    assert runs[0] == first and runs.count(first) == 1 and rows_of(first) == 30


@pytest.mark.parametrize("what", ["content", "template", "settings", "tokenizer", "handler"])
def test_whatever_changes_the_rows_is_prepared_anew(
    source, tmp_path, tiny_tokenizer_dir, make_tokenizer_dir, runs, what
):
    first = prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    changed = settings(source, tiny_tokenizer_dir)
    if what == "content":
        size = source.stat()
        write(source, [*ROWS[:-1], {**ROWS[-1], "output": "It is 28."}])  # as long as before
        os.utime(source, ns=(size.st_atime_ns, size.st_mtime_ns))
    elif what == "template":
        changed = settings(source, tiny_tokenizer_dir, prompt_type="chatml")
    elif what == "settings":
        changed = settings(source, tiny_tokenizer_dir, seq_length=64)
    elif what == "tokenizer":
        changed = settings(source, make_tokenizer_dir(tmp_path / "other", generation_eos=[1]))
    else:
        changed = settings(source, tiny_tokenizer_dir, map_keys={"system": "input"})
    second = prepared(changed, tmp_path / "kept")
    assert second != first and len(runs) == 2 and rows_of(first) == rows_of(second) == 30


def test_what_cannot_change_the_rows_does_not_count(source, tmp_path, tiny_tokenizer_dir, runs):
    first = prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    more = settings(source, tiny_tokenizer_dir, workers=3, log_interval=7)
    assert prepared(more, tmp_path / "kept") == first and len(runs) == 1


def test_a_damaged_or_unfinished_one_is_made_again(source, tmp_path, tiny_tokenizer_dir, runs):
    prefix = prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    files = DatasetFiles(prefix)
    files.data("labels").write_bytes(b"short")
    prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    files.manifest.unlink()
    prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    assert len(runs) == 3 and rows_of(prefix) == 30


def test_a_directory_is_one_input(tmp_path, tiny_tokenizer_dir, runs):
    folder = tmp_path / "many"
    folder.mkdir()
    write(folder / "a.jsonl", ROWS[:10])
    write(folder / "b.jsonl", ROWS[10:])
    first = prepared(settings(folder, tiny_tokenizer_dir), tmp_path / "kept")
    assert rows_of(first) == 30
    write(folder / "c.jsonl", ROWS[:1])
    assert rows_of(prepared(settings(folder, tiny_tokenizer_dir), tmp_path / "kept")) == 31


def test_an_error_names_the_flag_and_leaves_nothing_finished(tmp_path, tiny_tokenizer_dir):
    source = write(tmp_path / "dialogues.jsonl", [{"instruction": "", "output": 3}] * 5)
    for _ in range(2):  # the next process that asks fails in the same way, it does not wait
        with pytest.raises(UserError, match="--data-path .*dialogues.jsonl: 5 of 5 rows cannot"):
            prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*manifest.json"))


def test_a_place_that_cannot_be_written_is_named(source, tmp_path, tiny_tokenizer_dir):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--data-cache-path .*file/kept: cannot be written"):
        prepared(settings(source, tiny_tokenizer_dir), tmp_path / "file" / "kept")


def test_a_directory_without_rows_leaves_nothing(tmp_path, tiny_tokenizer_dir):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("no rows")
    with pytest.raises(DataError, match="--data-path .*empty: --input .*empty: no .*file"):
        prepared(settings(tmp_path / "empty", tiny_tokenizer_dir), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_input_that_changes_meanwhile_is_not_kept(
    source, tmp_path, tiny_tokenizer_dir, monkeypatch
):
    real = cache.prepare

    def changing(*arguments):
        write(source, ROWS[:7])
        return real(*arguments)

    monkeypatch.setattr(cache, "prepare", changing)
    with pytest.raises(DataError, match="changed while it was read"):
        prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*manifest.json"))


def _ask(source, tokenizer, directory, answers):
    made = []
    real = cache.prepare
    cache.prepare = lambda *a: made.append(1) or real(*a)
    prefix = prepared(settings(source, tokenizer), directory)
    answers.put((str(prefix), len(made), rows_of(prefix)))


def test_of_several_processes_one_prepares(source, tmp_path, tiny_tokenizer_dir):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [
        context.Process(target=_ask, args=(source, tiny_tokenizer_dir, tmp_path / "kept", answers))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert sum(made for _, made, _ in found) == 1
    assert len({prefix for prefix, _, _ in found}) == 1 and {rows for *_, rows in found} == {30}


def test_a_prefix_is_not_raw_even_beside_a_directory_of_its_name(
    source, tmp_path, tiny_tokenizer_dir
):
    assert is_raw(str(source)) and is_raw(str(tmp_path)) and not is_raw(str(tmp_path / "no"))
    prefix = prepared(settings(source, tiny_tokenizer_dir), tmp_path / "kept")
    assert not is_raw(str(prefix))
    prefix.mkdir()
    assert not is_raw(str(prefix))
