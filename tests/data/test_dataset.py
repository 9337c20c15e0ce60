"""Tests of mindspeed_llm.data.dataset: rows and splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindspeed_llm.data.dataset import SFTDataset, split_shares
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.writer import Shard, exclusive_scratch, write_six
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
    assert torch.equal(row["input_ids"], torch.tensor([3, 3, 3]))
    assert torch.equal(row["labels"], torch.tensor([-100, 3, 3]))
    assert row["input_ids"].dtype == row["labels"].dtype == torch.int64


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
