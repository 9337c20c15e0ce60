"""Tests of mindspeed_llm.data.prepare: every format, plain texts, mixing, --strict, names."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from mindspeed_llm.config.data import PLAIN_TEXT, PreprocessConfig
from mindspeed_llm.data import texts
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.prepare import prepare
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import ConfigError, DataError

ROWS = [{"instruction": f"Question {i}?", "input": "x" * (i % 3), "output": f"Answer {i}.",
         "histories": [[f"Before {i}?", "Yes.\n\"so\""]] * (i % 3)}
        for i in range(60)]  # fmt: skip
TEXTS = [f"Text {i}: Hello, how are you? " * (1 + i % 4) for i in range(40)]
MAP = {"history": "histories"}


@pytest.fixture
def config(tmp_path, tiny_tokenizer_dir):
    def make(*inputs, prefix="out/set", **changes):
        options = {"prompt_type": "gemma", "map_keys": MAP, **changes}
        return PreprocessConfig(
            input=tuple(map(str, inputs)), tokenizer_name_or_path=tiny_tokenizer_dir,
            output_prefix=tmp_path / prefix, **options)  # fmt: skip

    return make


@pytest.fixture
def plain(config):
    def make(*inputs, **changes):
        options = {"prompt_type": None, "map_keys": None, "handler_name": PLAIN_TEXT, **changes}
        return config(*inputs, **options)

    return make


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(path, rows=ROWS):
    if path.suffix == ".gz":
        write(path.with_suffix(""), rows)
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    elif path.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(path, table.schema) as file:
            file.write_table(table, max_chunksize=25)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()}
                            for r in rows)  # fmt: skip
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        jsonl(path, rows)
    return path


def digests(config):
    files = DatasetFiles(config.output_prefix)
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.six]


def rows_of(config):
    dataset = SFTDataset(config.output_prefix, tokenizer_sha256=None)
    return [dataset[index]["input_ids"].tolist() for index in range(len(dataset))]


def texts_of(config):
    tokenizer = load_tokenizer(config.tokenizer_name_or_path)
    return [tokenizer.decode(ids) for ids in rows_of(config)]


def test_every_format_gives_the_same_bytes(tmp_path, config):
    prepare(config(jsonl(tmp_path / "a.jsonl", ROWS)))
    expected = digests(config())
    for name in ("a.csv", "a.arrow", "b.jsonl.gz", "b.json.gz", "b.csv.gz"):
        settings = config(write(tmp_path / name))
        assert prepare(settings).tally.kept == 60
        assert digests(settings) == expected, name


def test_several_inputs_come_one_after_the_other_and_are_counted_apart(tmp_path, config):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    first = write(tmp_path / "z.csv.gz", ROWS[:20])
    write(tmp_path / "more" / "b.arrow", ROWS[20:40])
    jsonl(tmp_path / "more" / "deep" / "c.jsonl", [*ROWS[40:], {"instruction": "x", "output": ""}])
    report = prepare(config(first, tmp_path / "more"))
    assert [(p.tally.rows, p.tally.kept, p.tally.written) for p in report.parts] == [
        (20, 20, 20), (41, 40, 40)]  # fmt: skip
    together = digests(config())
    prepare(config(jsonl(tmp_path / "all.jsonl", ROWS)))
    assert digests(config()) == together
    assert report.listed[0].line == 21 and report.listed[0].file.endswith("c.jsonl")


def test_a_csv_history_is_json_text_and_a_wrong_one_names_its_line(tmp_path, config):
    rows = [dict(row) for row in ROWS]
    rows[30]["histories"] = "not a list"
    report = prepare(config(write(tmp_path / "a.csv", rows)))
    (bad,) = report.listed
    text = (tmp_path / "a.csv").read_text().split("\n")
    assert bad.kind == "malformed history" and text[bad.line - 1].startswith("Question 30?")


@pytest.mark.parametrize("name", ["a.csv", "a.arrow", "a.csv.gz", "a.txt", "a.jsonl.gz"])
def test_a_mapped_column_that_a_file_lacks_is_an_error_for_any_format(tmp_path, config, name):
    if name == "a.txt":
        path = tmp_path / name
        path.write_text("line")
    else:
        path = write(tmp_path / name)
    with pytest.raises(DataError, match=r"no column .*'past'.* in the whole file"):
        prepare(config(path, map_keys={"history": "past"}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_plain_texts(tmp_path, plain, name):
    path = tmp_path / name
    if "txt" in name:
        data = "\n\n".join(TEXTS).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    else:
        jsonl(path, [{"text": text} for text in TEXTS])
    settings = plain(path, append_eod=True)
    report = prepare(settings)
    assert report.tally.kept == report.tally.written == 40
    tokenizer = load_tokenizer(settings.tokenizer_name_or_path)
    dataset = SFTDataset(settings.output_prefix, tokenizer_sha256=tokenizer.sha256)
    for index, text in enumerate(TEXTS):
        row = dataset[index]
        ids = [*tokenizer.encode_text(text), tokenizer.eos_id]
        assert row["input_ids"].tolist() == ids and row["labels"].tolist() == [-100, *ids[1:]]
    manifest = Manifest.read(DatasetFiles(settings.output_prefix))
    assert manifest.template == "plain-text" and manifest.settings["append_eod"] is True
    assert manifest.supervised_tokens == manifest.tokens - 40


def test_long_texts_are_cut_and_every_token_but_a_single_last_one_is_there(tmp_path, plain):
    path = jsonl(tmp_path / "a.jsonl", [{"body": text} for text in TEXTS])
    whole = prepare(plain(path, json_keys=("body",))).tally
    settings = plain(path, json_keys=("body",), seq_length=8, truncation="split")
    tally = prepare(settings).tally
    assert tally.kept == 40 < tally.written == len(rows_of(settings)) and tally.longest == 8
    assert tally.tokens + tally.dropped_tokens == whole.tokens and tally.dropped_tokens <= 40
    with pytest.raises(DataError, match="no column 'text'.*--json-keys"):
        prepare(plain(path))


def two(tmp_path):
    rows = [{"instruction": f"{name}{i}", "output": "o"} for name in "AB" for i in range(30)]
    jsonl(tmp_path / "a.jsonl", [*rows[:30], {"instruction": "A", "output": None}])
    jsonl(tmp_path / "b.jsonl", rows[30:])
    return f"{tmp_path / 'a.jsonl'}:1", f"{tmp_path / 'b.jsonl'}:3"


def test_weights_choose_how_many_rows_come_from_where(tmp_path, config):
    settings = config(*two(tmp_path), map_keys=None)
    report = prepare(settings)
    found = ["A" in text.split("user")[1] for text in texts_of(settings)]
    assert len(found) == 40 and found.count(True) == 10
    assert all(abs(sum(found[:n]) - n / 4) <= 1 for n in range(41))
    a, b = report.parts
    assert (a.weight, a.tally.rows, a.tally.written) == (1.0, 31, 10)
    assert (b.weight, b.tally.rows, b.tally.written) == (3.0, 30, 30)
    assert dict(+report.tally.buckets) == {"kept": 40, "not mixed in": 20, "empty answer": 1}
    assert report.tally.rows == 61 and report.tally.written == 40
    manifest = Manifest.read(DatasetFiles(settings.output_prefix))
    ids = rows_of(settings)
    assert manifest.rows == 40 and manifest.tokens == sum(map(len, ids))
    assert manifest.longest == max(map(len, ids)) and manifest.settings["weights"] == [1.0, 3.0]
    labels = np.fromfile(DatasetFiles(settings.output_prefix).data("labels"), "<i4")
    assert manifest.supervised_tokens == (labels != -100).sum()


def test_an_exhausted_source_can_begin_again(tmp_path, config):
    settings = config(*two(tmp_path), map_keys=None, mix_exhausted="repeat")
    report = prepare(settings)
    found = texts_of(settings)
    assert len(set(found)) == 60 and report.tally.kept == 60
    assert report.parts[0].tally.written == 30 and 88 <= report.parts[1].tally.written <= 90
    assert report.tally.written == len(found) == sum(p.tally.written for p in report.parts)


def test_a_mix_can_be_packed_and_its_order_needs_no_particular_workers(
    tmp_path, config, monkeypatch
):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 500)
    seen = []
    for workers in (1, 2, 4):
        settings = config(*two(tmp_path), map_keys=None, pack=True, seq_length=64, workers=workers)
        report = prepare(settings)
        seen.append(digests(settings))
    assert seen[0] == seen[1] == seen[2]
    manifest = Manifest.read(DatasetFiles(settings.output_prefix))
    assert manifest.packing.segments == report.tally.written == 40
    other = config(*two(tmp_path), map_keys=None, pack=True, seq_length=64, seed=7)
    prepare(other)
    assert digests(other) != seen[0]


def test_the_pieces_of_a_text_stay_together_in_a_mix(tmp_path, plain):
    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl", [{"text": name * 3 + text} for text in TEXTS])
    settings = plain(f"{tmp_path / 'a.jsonl'}:1", f"{tmp_path / 'b.jsonl'}:2", seq_length=8,
                     truncation="split")  # fmt: skip
    report = prepare(settings)
    found = "".join(texts_of(settings))
    assert report.tally.kept == 60 and report.tally.written == len(rows_of(settings)) > 60
    whole = sum(found.count(f"{name * 3}{text}"[:-2]) > 0 for name in "ab" for text in TEXTS)
    assert whole >= 60


def test_a_source_without_a_usable_row_cannot_be_mixed(tmp_path, config):
    first, second = two(tmp_path)
    jsonl(tmp_path / "b.jsonl", [{"instruction": "B", "output": ""}])
    with pytest.raises(DataError, match="b.jsonl: no row of it can be used"):
        prepare(config(first, second, map_keys=None, on_bad_row="skip"))
    with pytest.raises(ConfigError, match="--mix-exhausted repeat needs weights"):
        prepare(config(tmp_path / "a.jsonl", map_keys=None, mix_exhausted="repeat"))
    assert not (tmp_path / "out").exists()


def test_strict_stops_at_the_first_bad_row(tmp_path, config, monkeypatch):
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 700)
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    prepare(config(path))
    before = digests(config())
    bad = [dict(row) for row in ROWS]
    for index, column in ((17, "output"), (16, "instruction"), (50, "output")):
        bad[index][column] = {"a": 1}
    jsonl(path, bad)
    for workers in (1, 2):
        with pytest.raises(DataError) as caught:
            prepare(config(path, strict=True, workers=workers))
        assert str(caught.value) == (
            f"{path}:17: instruction: an object, expected text (--strict); nothing was written"
        )
        assert digests(config()) == before  # fmt: skip
    jsonl(path, ROWS)
    assert prepare(config(path, strict=True, seq_length=30)).tally.kept < 60  # no fault of a row
    with pytest.raises(DataError, match=r"a.jsonl:\d+: \(row\): .* tokens.*--strict"):
        prepare(config(path, strict=True, seq_length=30, truncation="error"))


@pytest.mark.parametrize("prefix", ["a+[b](c).*", "$x ^{1,2}|\\d", "é\U0001f600"])
def test_any_prefix_and_a_bare_one(tmp_path, config, monkeypatch, prefix):
    """T14: nothing reads a prefix as a pattern; megatron.core reads the files back."""
    from dataclasses import replace
    from pathlib import Path

    path = jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    settings = replace(config(path), output_prefix=Path(prefix))
    assert prepare(settings).tally.kept == len(rows_of(settings)) == 60


def test_what_is_trained_can_be_chosen(tmp_path, config, renderer_of):
    rows = [{"messages": [{"role": "user", "content": "A?"},
                          {"role": "assistant", "content": "a.", **mark},
                          {"role": "user", "content": "B?"},
                          {"role": "assistant", "content": "b."}]}
            for mark in ({}, {"loss": False}, {"loss": True})]  # fmt: skip
    path = jsonl(tmp_path / "a.jsonl", rows)
    end = renderer_of("gemma").end_id

    def ends(**changes):
        settings = config(path, handler_name="OpenAIInstructionHandler", map_keys=None, **changes)
        prepare(settings)
        dataset = SFTDataset(settings.output_prefix, tokenizer_sha256=None)
        return [int((dataset[i]["labels"] == end).sum()) for i in range(len(dataset))]

    assert ends() == [2, 1, 2]
    assert ends(train_on="last") == [1, 1, 2]
    assert ends(train_on="none", on_bad_row="skip") == [1]
    assert ends(train_on_inputs=True) == [4, 3, 4]
