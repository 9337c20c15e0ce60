"""Owns how rows of prepared data sets pass through Megatron-LM's data loader, which takes tensors
of one size, and become a micro-batch again. Knows neither flags' spelling nor models.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from mindspeed_llm.data.blend import Blend, Ordering
from mindspeed_llm.data.dataset import SFTDataset, split_shares
from mindspeed_llm.data.order import RowAt
from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.training.batch import Row, stack
from mindspeed_llm.training.megatron_lm_flags import data_settings, manifests_of
from mindspeed_llm.training.step import packed_sequences


class Samples(torch.utils.data.Dataset):
    """The stream of a split's samples, `number` of them, in the order of `row_at`.

    A sample has `tokens`, `targets` (shifted, IGNORE where not trained) and `begins` (1 where a
    sequence begins that sees none before it), all int64 [size], and `length`, how much of them is
    a row; the rest is padding.
    """

    def __init__(self, rows: Blend, row_at: RowAt, number: int, *, size: int, pad_id: int) -> None:
        self._rows, self._row_at, self._number = rows, row_at, number
        self._size, self._pad_id = size, pad_id

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        row = Row.shifted(self._rows[self._row_at(int(position))])
        tokens = torch.full((self._size,), self._pad_id)
        targets = torch.full((self._size,), IGNORE)
        begins = torch.zeros(self._size, dtype=torch.int64)
        tokens[: len(row)], targets[: len(row)] = row.tokens, row.targets
        if row.cu_seqlens is not None:
            begins[row.cu_seqlens[:-1].long()] = 1
        return {"tokens": tokens, "targets": targets, "begins": begins,
                "length": torch.tensor(len(row))}  # fmt: skip


def build_samples(args: argparse.Namespace, numbers: Sequence[int]) -> list[Samples | None]:
    """Training, validation and test samples, `numbers` of them, or None where none are asked for.

    Raises:
        ConfigError: --split leaves no row for a part that is asked for.
    """
    data = data_settings(args)
    pad_id = manifests_of(data)[0].pad_id
    parts: list[Samples | None] = []
    names = ("training", "validation", "test")
    for name, number, share in zip(names, numbers, split_shares(data.split), strict=True):
        if not number or (name != "training" and share[0] == share[1]):
            parts.append(None)
            continue
        members = [
            SFTDataset(prefix, tokenizer_sha256=None, max_length=args.seq_length, share=share)
            for prefix in data.prefixes
        ]
        empty = [prefix for prefix, rows in zip(data.prefixes, members, strict=True) if not rows]
        if empty:
            raise ConfigError(f"--split {data.split} leaves no {name} row in {empty[0]}")
        rows = Blend(members, data.weights)
        training = name == "training"
        how = Ordering(
            seed=args.seed,
            shuffle=data.shuffle and training,
            fill=args.global_batch_size if data.padded_samples and training else 1,
            samples=number if data.full_shuffle_instruction_dataset and training else None,
        )
        parts.append(
            Samples(rows, rows.order(how), number, size=args.seq_length, pad_id=pad_id)
        )  # fmt: skip
    return parts


@dataclasses.dataclass(frozen=True)
class PlainBatch:
    """int64 [rows, length] each; packed rows one behind the other in [1, rows * length], with
    their `sequences`."""

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    sequences: PackedSeqParams | None


def micro_batch(samples: Mapping[str, torch.Tensor], *, multiple: int | None) -> PlainBatch:
    """The micro-batch of collated `samples`.

    Args:
        samples: of `Samples`, collated: [rows, size] and [rows].
        multiple: cut padding behind the longest row rounded up to it; None: keep all.
    """
    rows = []
    for tokens, targets, begins, length in zip(
        samples["tokens"], samples["targets"], samples["begins"], samples["length"], strict=True
    ):
        size = int(length)
        where = begins.nonzero().flatten().int()
        bounds = torch.cat([where, torch.tensor([size], dtype=torch.int32)]) if len(where) else None
        rows.append(Row(tokens[:size], targets[:size], 0, bounds))
    size = samples["tokens"].shape[1]
    whole = stack(
        rows, pad_id=int(samples["tokens"][0, -1]), length=None if multiple else size,
        multiple=multiple or 1,
    )  # fmt: skip
    return PlainBatch(
        whole.tokens, whole.targets, whole.positions, packed_sequences(whole.cu_seqlens)
    )
