"""Tests of mindspeed_llm.data.writer: bytes, joining, and what is left after a failure."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mindspeed_llm.data.manifest import DatasetFiles
from mindspeed_llm.data.packing import Packing
from mindspeed_llm.data.writer import (
    Shard,
    exclusive_scratch,
    remove_finished,
    write_packed,
    write_six,
)
from mindspeed_llm.errors import DataError

ROWS = [([1, 2, 3], [-100, 2, 3]), ([4, 5], [-100, 5])]


def write(files, *groups):
    with exclusive_scratch(files) as scratch:
        shards = []
        for number, rows in enumerate(groups):
            with Shard(scratch / str(number)) as shard:
                for ids, labels in rows:
                    shard.add(ids, labels)
            shards.append(shard)
        return write_six(files, shards, scratch)


def test_index_bytes_are_megatrons(tmp_path):
    files = DatasetFiles(tmp_path / "x")
    write(files, ROWS)
    header = (
        "4d4d49444944580000" + "0100000000000000" + "04" + "0200000000000000" + "0300000000000000"
    )
    body = np.array([3, 2], "<i4").tobytes() + np.array([0, 12, 0, 1, 2], "<i8").tobytes()
    assert files.index("labels").read_bytes() == bytes.fromhex(header) + body
    assert len(files.index("labels").read_bytes()) == 82
    labels = np.fromfile(files.data("labels"), "<i4").tolist()
    assert labels == [-100, 2, 3, -100, 5]
    assert np.fromfile(files.data("attention_mask"), "<i4").tolist() == [1] * 5


@pytest.mark.parametrize("prefix", ["set", "a[1]+(b).c", "names with blanks/ü"])
def test_megatron_reads_them_whatever_the_prefix(tmp_path, prefix):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    files = DatasetFiles(tmp_path / prefix)
    write(files, ROWS)
    for key, expected in zip(("input_ids", "labels"), zip(*ROWS, strict=True), strict=True):
        dataset = IndexedDataset(str(files.stem(key)))
        assert dataset.index.dtype is np.int32
        assert len(dataset) == 2 and dataset.document_indices.tolist() == [0, 1, 2]
        assert [dataset[i].tolist() for i in range(2)] == list(expected)


def test_shards_are_joined_in_order(tmp_path):
    one, two = DatasetFiles(tmp_path / "one"), DatasetFiles(tmp_path / "two")
    first = write(one, ROWS)
    second = write(two, ROWS[:1], [], ROWS[1:])
    assert [d["sha256"] for d in first.values()] == [d["sha256"] for d in second.values()]


def test_no_rows_is_an_error_and_leaves_nothing(tmp_path):
    files = DatasetFiles(tmp_path / "x")
    with pytest.raises(DataError, match="no rows"):
        write(files, [])
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_dead_run_are_cleared(tmp_path):
    files = DatasetFiles(tmp_path / "x")
    files.scratch.mkdir()
    (files.scratch / "shard-00000000.input_ids").write_bytes(b"old")
    write(files, ROWS)
    assert not files.scratch.exists()


def test_two_runs_at_once_are_refused(tmp_path):
    files = DatasetFiles(tmp_path / "x")
    script = (
        "import sys, pathlib\n"
        "from mindspeed_llm.data.manifest import DatasetFiles\n"
        "from mindspeed_llm.data.writer import exclusive_scratch\n"
        "from mindspeed_llm.errors import DataError\n"
        "try:\n"
        "    with exclusive_scratch(DatasetFiles(pathlib.Path(sys.argv[1]))): print('entered')\n"
        "except DataError as err: print(err)\n"
    )
    with exclusive_scratch(files):
        other = subprocess.run([sys.executable, "-c", script, str(files.prefix)], text=True,
                               capture_output=True, timeout=60)  # fmt: skip
    assert "another process is writing" in other.stdout


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--output-prefix .*cannot write there"):
        write(DatasetFiles(tmp_path / "file" / "x"), ROWS)


def test_an_older_set_is_removed_manifest_first(tmp_path, monkeypatch):
    files = DatasetFiles(tmp_path / "x")
    write(files, ROWS)
    files.manifest.write_text("{}")
    gone = []
    unlink = type(files.manifest).unlink

    def watched(self, **options):
        gone.append(self.name)
        unlink(self, **options)

    monkeypatch.setattr(type(files.manifest), "unlink", watched)
    remove_finished(files)
    assert gone[0] == files.manifest.name
    assert list(tmp_path.iterdir()) == []


def test_packed_rows_come_from_any_shard_and_no_first_token_is_supervised(tmp_path):
    files = DatasetFiles(tmp_path / "x")
    packing = Packing(capacity=8, multiple=4, rows=2, segments=3, efficiency=0.5)
    with exclusive_scratch(files) as scratch:
        shards = []
        for number, rows in enumerate(
            ([([1, 2, 3], [1, 2, 3])], [], [([4, 5], [-100, 5]), ([6], [6])])
        ):
            with Shard(scratch / str(number)) as shard:
                for ids, labels in rows:
                    shard.add(ids, labels)
            shards.append(shard)
        _, supervised = write_packed(files, shards, [[0, 2], [1]], packing, 9, scratch)
    found = {key: np.fromfile(files.data(key), "<i4").reshape(2, 8).tolist()
             for key in ("input_ids", "labels", "attention_mask")}  # fmt: skip
    no = -100
    assert found["input_ids"] == [[1, 2, 3, 9, 6, 9, 9, 9], [4, 5, 9, 9, 9, 9, 9, 9]]
    assert found["labels"] == [[no, 2, 3, no, no, no, no, no], [no, 5] + [no] * 6]
    assert found["attention_mask"] == [[1, 1, 1, 0, 2, 0, 0, 0], [1, 1] + [0] * 6]
    assert supervised == 3
