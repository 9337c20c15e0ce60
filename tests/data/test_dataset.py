"""Tests of mindspeed_llm.data.dataset: rows and splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindspeed_llm.data.dataset import SFTDataset, split_shares
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.packing import Packing
from mindspeed_llm.data.writer import Shard, exclusive_scratch, write_packed, write_six
from mindspeed_llm.errors import ConfigError, DataError


@pytest.fixture
def prefix(tmp_path):
    files = DatasetFiles(tmp_path / "set")
    with exclusive_scratch(files) as scratch:
        with Shard(scratch / "0") as shard:
            for n in range(1, 21):  # row n - 1 has n tokens, all of them n
                shard.add([n] * n, [-100] + [n] * (n - 1))
        described = write_six(files, [shard], scratch)
    Manifest(rows=20, tokens=210, supervised_tokens=190, longest=20, tokenizer_sha256="tok",
             vocab_size=99, eos_id=1, pad_id=0, template="gemma", template_sha256="g",
             seq_length=None, packed=False, seed=1, settings={}, counts={}, inputs=[],
             files=described, versions={}).write(files.manifest)  # fmt: skip
    return files.prefix


def test_rows_are_int64_and_unshifted(prefix):
    dataset = SFTDataset(prefix, tokenizer_sha256="tok")
    assert len(dataset) == 20
    row = dataset[2]
    assert dataset.packing is None and set(row) == {"input_ids", "labels"}
    assert torch.equal(row["input_ids"], torch.tensor([3, 3, 3]))
    assert torch.equal(row["labels"], torch.tensor([-100, 3, 3]))
    assert row["input_ids"].dtype == row["labels"].dtype == torch.int64


@pytest.fixture
def packed(tmp_path):
    """Conversations of 5 and 4 tokens in rows of 10; every token is 1, the end-of-sequence."""
    files = DatasetFiles(tmp_path / "packed")
    packing = Packing(capacity=10, multiple=1, rows=1, segments=2, efficiency=0.9)
    with exclusive_scratch(files) as scratch:
        with Shard(scratch / "0") as shard:
            for length in (5, 4):
                shard.add([1] * length, [1] * length)
        described, supervised = write_packed(files, [shard], [[0, 1]], packing, 1, scratch)
    Manifest(rows=1, tokens=9, supervised_tokens=supervised, longest=5, tokenizer_sha256="tok",
             vocab_size=99, eos_id=1, pad_id=1, template="gemma", template_sha256="g",
             seq_length=10, packed=True, seed=1, settings={}, counts={}, inputs=[],
             files=described, versions={}, packing=packing).write(files.manifest)  # fmt: skip
    return files.prefix


def test_packed_rows_say_where_their_conversations_are(packed):
    dataset = SFTDataset(packed, tokenizer_sha256="tok")
    row = dataset[0]
    assert dataset.packing.capacity == 10
    assert row["segment_ids"].tolist() == [1] * 5 + [2] * 4 + [0]
    assert row["cu_seqlens"].tolist() == [0, 5, 9, 10]  # though every token ends a sequence
    assert row["cu_seqlens"].dtype == torch.int32
    assert row["labels"].tolist() == [-100, 1, 1, 1, 1, -100, 1, 1, 1, -100]


def test_segments_that_do_not_fit_the_rows_are_refused(packed):
    files = DatasetFiles(packed)
    data = bytearray(files.index("attention_mask").read_bytes())
    data[34:38] = np.array([9], "<i4").tobytes()
    files.index("attention_mask").write_bytes(bytes(data))
    with pytest.raises(DataError, match="attention_mask.* or their lengths differ"):
        SFTDataset(packed, tokenizer_sha256="tok")


def test_another_tokenizer_is_refused(prefix):
    with pytest.raises(DataError, match="another tokenizer"):
        SFTDataset(prefix, tokenizer_sha256="else")
    assert len(SFTDataset(prefix, tokenizer_sha256=None)) == 20


def test_over_long_rows_are_left_out_and_counted(prefix):
    dataset = SFTDataset(prefix, tokenizer_sha256="tok", max_length=7)
    assert (len(dataset), dataset.left_out) == (7, 13)
    assert max(len(dataset[i]["input_ids"]) for i in range(7)) == 7
    with pytest.raises(DataError, match="all 2 rows are longer .*shortest: 19"):
        SFTDataset(prefix, tokenizer_sha256="tok", max_length=7, share=(0.9, 1.0))


def test_files_that_do_not_fit_together_are_refused(prefix):
    files = DatasetFiles(prefix)
    lengths = np.array([21, *range(2, 20), 20], "<i4")
    data = bytearray(files.index("labels").read_bytes())
    data[34 : 34 + 80] = lengths.tobytes()
    files.index("labels").write_bytes(bytes(data))
    with pytest.raises(DataError, match="their lengths differ"):
        SFTDataset(prefix, tokenizer_sha256="tok")


def test_splits_cover_every_row_once(prefix):
    shares = split_shares("80,15,5")
    parts = [SFTDataset(prefix, tokenizer_sha256="tok", share=share) for share in shares]
    assert [len(part) for part in parts] == [16, 3, 1]
    rows = [int(part[i]["input_ids"][0]) for part in parts for i in range(len(part))]
    assert rows == list(range(1, 21))
    assert [
        len(SFTDataset(prefix, tokenizer_sha256="tok", share=s)) for s in split_shares("1")
    ] == [20, 0, 0]


@pytest.mark.parametrize("split", ["", "a,b", "1,-1", "0,0", "1,2,3,4", "inf,1", "nan"])
def test_wrong_splits_are_refused(split):
    with pytest.raises(ConfigError, match="--split"):
        split_shares(split)
