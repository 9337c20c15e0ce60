"""Tests of mindspeed_llm.data.dataset: rows, splits, and who gets which row when."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindspeed_llm.data.dataset import GlobalBatchSampler, SFTDataset, split_shares
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


def sampler(**changes):
    options = {"global_batch_size": 8, "micro_batch_size": 2, "seed": 5, **changes}
    return GlobalBatchSampler(21, **options)


def step(ranks, micro, consumed):
    found = [sampler(micro_batch_size=micro, data_parallel_rank=r, data_parallel_size=ranks,
                     consumed_samples=consumed).step() for r in range(ranks)]  # fmt: skip
    assert all(len(batch) == micro for mine in found for batch in mine)
    assert all(len(mine) == 8 // (ranks * micro) for mine in found)
    return [row for mine in zip(*found, strict=True) for batch in mine for row in batch]


@pytest.mark.parametrize("consumed", [0, 8, 16, 40, 21 * 1000 + 3])
def test_a_global_batch_is_the_same_for_every_layout(consumed):
    expected = step(1, 8, consumed)
    for ranks, micro in ((1, 1), (1, 2), (2, 1), (2, 4), (4, 2), (8, 1)):
        assert step(ranks, micro, consumed) == expected


def test_every_epoch_holds_every_row_once_in_its_own_order():
    run = sampler()
    rows = [row for _ in range(21) for batch in run.step() for row in batch]
    epochs = [rows[i : i + 21] for i in range(0, 168, 21)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert run.epoch == 8 and run.consumed_samples == 168


def test_resuming_anywhere_continues_the_stream():
    whole = sampler()
    steps = [whole.step() for _ in range(12)]
    for done in range(12):
        assert sampler(consumed_samples=8 * done).step() == steps[done]


def test_iterating_gives_the_micro_batches_of_the_steps():
    run = iter(sampler())
    assert [next(run) for _ in range(8)] == sampler().step() + sampler(consumed_samples=8).step()


def test_the_seed_decides_and_file_order_can_be_kept():
    assert sampler(seed=5).step() == sampler(seed=5).step() != sampler(seed=6).step()
    run = sampler(shuffle=False)
    assert [r for _ in range(3) for b in run.step() for r in b] == [*range(21), 0, 1, 2]


def test_the_order_of_an_epoch_is_fixed_for_good():
    assert [GlobalBatchSampler(6, global_batch_size=1, micro_batch_size=1, seed=1).row(i)
            for i in range(12)] == FIRST_EPOCHS  # fmt: skip


FIRST_EPOCHS = [2, 3, 5, 0, 4, 1, 2, 0, 5, 3, 1, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch_size": 3}, "--global-batch-size 8 is not a multiple"),
        ({"data_parallel_size": 3}, "= 6"),
        ({"data_parallel_rank": 1}, "rank 1 of 1"),
        ({"consumed_samples": -1}, "negative"),
    ],
)
def test_wrong_sizes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        sampler(**changes)
    with pytest.raises(ConfigError, match="no rows"):
        GlobalBatchSampler(0, global_batch_size=1, micro_batch_size=1)
