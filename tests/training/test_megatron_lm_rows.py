"""Tests of mindspeed_llm.training.megatron_lm_rows."""

from __future__ import annotations

import types

import pytest
import torch
from torch.utils.data import default_collate

from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.training.batch import Row
from mindspeed_llm.training.megatron_lm_rows import build_samples, micro_batch


def arguments(prefix, **changes):
    values = {"data_path": [str(prefix)], "split": "80,10,10", "seq_length": 64, "seed": 3,
              "global_batch_size": 4, "prompt_type": None, "pad_to_multiple_of": 8,
              "shuffle": False, "padded_samples": False, "neat_pack": False,
              "full_shuffle_instruction_dataset": False, "reset_position_ids": False,
              "reset_attention_mask": False, "instruction_rows_trimmed": False}  # fmt: skip
    return types.SimpleNamespace(**values | changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_tokenizer_dir, tiny_sft_data):
    return tiny_sft_data(tmp_path_factory.mktemp("plain") / "p", tiny_tokenizer_dir, rows=40)


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny_tokenizer_dir, tiny_sft_data):
    folder = tmp_path_factory.mktemp("packed")
    return tiny_sft_data(folder / "p", tiny_tokenizer_dir, rows=40, capacity=64)


def test_rows_pass_the_loader_unchanged(plain):
    train, _, _ = build_samples(arguments(plain), [8, 4, 4])
    batch = micro_batch(default_collate([train[i] for i in range(3)]), multiple=None)
    assert batch.tokens.shape == (3, 64) and batch.sequences is None
    for index in range(3):
        row = Row.shifted(train._rows[index])
        assert torch.equal(batch.tokens[index, : len(row)], row.tokens)
        assert torch.equal(batch.targets[index, : len(row)], row.targets)
        assert (batch.targets[index, len(row) :] == IGNORE).all()


def test_padding_is_trimmed_to_a_multiple(plain):
    train, _, _ = build_samples(arguments(plain), [8, 4, 4])
    samples = default_collate([train[i] for i in range(3)])
    longest = int(samples["length"].max())
    batch = micro_batch(samples, multiple=8)
    assert batch.tokens.shape == (3, -(-longest // 8) * 8)
    assert torch.equal(batch.tokens[:, :longest], samples["tokens"][:, :longest])


def test_sequences_of_packed_rows_come_through(packed):
    train, _, _ = build_samples(arguments(packed), [8, 4, 4])
    batch = micro_batch(default_collate([train[0], train[1]]), multiple=None)
    assert batch.tokens.shape == (1, 128)
    rows = [Row.shifted(train._rows[i]) for i in (0, 1)]
    bounds = [*rows[0].cu_seqlens.tolist()[:-1], *(rows[1].cu_seqlens + 64).tolist()]
    assert batch.sequences.cu_seqlens_q.tolist() == bounds
    assert (batch.positions[0, bounds[:-1]] == 0).all()
    assert torch.equal(batch.targets[0], torch.cat([row.targets for row in rows]))


def test_epochs_follow_each_other_and_parts_keep_apart(plain):
    args = arguments(plain, shuffle=True)
    train, validation, test = build_samples(args, [64, 4, 4])
    assert (len(train), len(validation), len(test)) == (64, 4, 4)
    seen = [tuple(train[i]["tokens"].tolist()) for i in range(64)]
    assert len(set(seen[:32])) == 32 and set(seen[32:]) == set(seen[:32]) != seen[:32]
    assert seen[32:] != seen[:32]
    others = {tuple(validation[i]["tokens"].tolist()) for i in range(4)}
    assert not others & set(seen)


def test_what_is_not_asked_for_or_not_there(plain):
    assert build_samples(arguments(plain, split="100,0,0"), [4, 4, 0])[1:] == [None, None]
    with pytest.raises(ConfigError, match="leaves no validation row"):
        build_samples(arguments(plain, split="99.9,0.1,0"), [4, 4, 0])
