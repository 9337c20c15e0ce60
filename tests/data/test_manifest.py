"""Tests of mindspeed_llm.data.manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_llm.data.manifest import DatasetFiles, Manifest, write_json
from mindspeed_llm.data.writer import Shard, exclusive_scratch, write_six
from mindspeed_llm.errors import DataError


@pytest.fixture
def files(tmp_path) -> DatasetFiles:
    files = DatasetFiles(tmp_path / "set")
    with exclusive_scratch(files) as scratch:
        with Shard(scratch / "0") as shard:
            shard.add([1, 2], [-100, 2])
        described = write_six(files, [shard], scratch)
    Manifest(rows=1, tokens=2, supervised_tokens=1, longest=2, tokenizer_sha256="t", vocab_size=9,
             eos_id=1, pad_id=0, template="gemma", template_sha256="g", seq_length=None,
             packed=False, seed=1, settings={}, counts={"kept": 1}, inputs=[], files=described,
             versions={}).write(files.manifest)  # fmt: skip
    return files


def test_names_are_the_guides():
    files = DatasetFiles(Path("finetune_dataset/alpaca"))
    keys = ("input_ids", "attention_mask", "labels")
    stems = [f"finetune_dataset/alpaca_packed_{key}_document" for key in keys]
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in ("bin", "idx")]
    assert [str(p) for p in files.six] == expected
    assert DatasetFiles(Path("a.b")).data("labels") == Path("a.b_packed_labels_document.bin")


def test_what_was_written_is_read(files):
    manifest = Manifest.read(files)
    assert (manifest.rows, manifest.tokens, manifest.template) == (1, 2, "gemma")
    assert set(manifest.files) == {p.name for p in files.six}


def test_missing_files_are_all_named(files):
    files.data("labels").unlink()
    files.index("input_ids").unlink()
    with pytest.raises(DataError, match="input_ids_document.idx, .*labels_document.bin"):
        Manifest.read(files)


def test_without_a_manifest_a_data_set_is_not_finished(files):
    files.manifest.unlink()
    with pytest.raises(DataError, match="did not finish"):
        Manifest.read(files)


def test_files_of_another_run_are_refused(files):
    with files.data("labels").open("ab") as file:
        file.write(b"1234")
    with pytest.raises(DataError, match="labels_document.bin has 12 bytes, not 8"):
        Manifest.read(files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99, expected 1"),
        ({"surprise": 1}, "not a manifest"),
        (None, "not a manifest"),
    ],
)
def test_other_manifests_are_refused(files, change, message):
    if change is None:
        files.manifest.write_text("{")
    else:
        data = json.loads(files.manifest.read_text())
        write_json(files.manifest, {**data, **change})
    with pytest.raises(DataError, match=message):
        Manifest.read(files)
