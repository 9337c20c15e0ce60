"""Owns how rows of a data set become micro-batches: the shift of labels, the order inside a global
batch, padding, and which data-parallel rank gets what. Knows neither models nor losses.

Labels are shifted here, before anything is padded or sliced: `targets[i]` is the token that follows
`tokens[i]` in the same conversation. The last token of a row is never an input and the first never
a target, so both are dropped. A packed row keeps its length: the last token of each conversation
stays an input, without a target. Every pipeline stage makes the same micro-batches from the same
rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from mindspeed_llm.data.collate import collate
from mindspeed_llm.data.packing import positions
from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.kernels.context_parallel import shares
from mindspeed_llm.training.turns import turns_of


@dataclasses.dataclass(frozen=True)
class Row:
    """One shifted row: `tokens` and `targets`, int64 [length]; targets are a token or IGNORE.

    `real` counts inputs that a token of the same conversation follows: as many whether the
    conversations are packed or not. `cu_seqlens`, int32, is where the sequences of a packed row
    begin, and its length, and `inside`, bool [length], which inputs `real` counts; None where a row
    is one sequence.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    real: int
    cu_seqlens: torch.Tensor | None = None
    inside: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.numel()

    @property
    def work(self) -> tuple[int, int]:
        """What rows are compared by: length, then the cost of attention."""
        if self.cu_seqlens is None:
            return len(self), len(self) ** 2
        return len(self), int(self.cu_seqlens.diff().square().sum())

    @property
    def spans(self) -> list[int]:
        """Lengths of the sequences."""
        return [len(self)] if self.cu_seqlens is None else self.cu_seqlens.diff().tolist()

    @classmethod
    def shifted(cls, sample: Mapping[str, torch.Tensor]) -> Row:
        """From a data set's sample: `input_ids` and unshifted `labels`, int64 [length >= 2]; of a
        packed row `segment_ids` and `cu_seqlens` too, see `SFTDataset`."""
        tokens, labels = sample["input_ids"], sample["labels"]
        if "cu_seqlens" not in sample:
            return cls(tokens=tokens[:-1], targets=labels[1:], real=len(tokens) - 1)
        segments = sample["segment_ids"]
        inside = (segments[1:] == segments[:-1]) & (segments[1:] != 0)
        targets = torch.full_like(labels, IGNORE)
        targets[:-1] = torch.where(inside, labels[1:], IGNORE)
        counted = torch.zeros_like(tokens, dtype=torch.bool)
        counted[:-1] = inside
        return cls(tokens, targets, int(inside.sum()), sample["cu_seqlens"], counted)

    def silent(self) -> Row:
        """The same tokens without a target: fills a micro-batch without changing the loss."""
        return dataclasses.replace(self, targets=torch.full_like(self.targets, IGNORE), real=0)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Input of one forward pass, padded on the right (causal attention never looks there).

    `tokens`, `targets`, `positions` and `turns` are int64 [rows, length]; `turns` numbers the
    trained targets by answer (see `turns_of`). `real_tokens` is the sum of `Row.real`, `supervised`
    the number of targets that are trained, `spans` the lengths of the sequences that are. `real`,
    bool [rows, length], says which tokens `real_tokens` counts.

    Packed rows lie one behind the other in [1, rows * length]. `cu_seqlens`, int32 and always on
    the CPU (reading it must not wait for the device), says where their sequences begin, and the
    length; positions start again in each.

    A context-parallel rank has its `share` of the tokens and of `supervised`; `cu_seqlens` and
    `length`, the tokens of each row (of all packed rows together), are those of the whole.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    turns: torch.Tensor
    spans: tuple[int, ...]
    real: torch.Tensor
    real_tokens: int
    supervised: int
    length: int
    cu_seqlens: torch.Tensor | None = None

    def share(self, rank: int, ranks: int) -> MicroBatch:
        """What context-parallel rank `rank` of `ranks` has; `length` is a multiple of `ranks`.

        Targets were shifted before, so none is lost where a rank's tokens end. The first rank
        counts the real tokens of all.
        """
        if ranks == 1:
            return self
        bounds = (0, self.length) if self.cu_seqlens is None else self.cu_seqlens.tolist()
        held = shares(tuple(bounds), ranks)[rank].tokens()
        targets = self.targets[:, held]
        return dataclasses.replace(
            self,
            tokens=self.tokens[:, held],
            targets=targets,
            positions=self.positions[:, held],
            turns=self.turns[:, held],
            real=self.real[:, held],
            real_tokens=self.real_tokens if rank == 0 else 0,
            supervised=int((targets != IGNORE).sum()),
        )

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "targets", "positions", "turns", "real")
        }
        return dataclasses.replace(self, **moved)


def stack(rows: Sequence[Row], *, pad_id: int, length: int | None, multiple: int) -> MicroBatch:
    """Pad `rows` to `length`, or to the longest of them rounded up to a multiple of `multiple`.

    `pad_id` may be any token of the vocabulary: what stands there is neither seen nor trained.
    Packed rows, all of them or none, must have the right length already.
    """
    batch = collate(
        [{"input_ids": row.tokens, "labels": row.targets} for row in rows],
        pad_id=pad_id,
        seq_length=length,
        pad_to_multiple_of=multiple,
    )
    tokens, targets = batch["input_ids"], batch["labels"]
    real = torch.zeros_like(tokens, dtype=torch.bool)
    for mask, row in zip(real, rows, strict=True):
        if row.real:  # a row that only fills a micro-batch has none
            mask[: len(row)] = True if row.inside is None else row.inside
    sequences = [row.cu_seqlens for row in rows if row.cu_seqlens is not None]
    bounds = None
    if sequences:
        assert len(sequences) == len(rows) and (batch["lengths"] == tokens.shape[1]).all()
        starts = torch.arange(len(rows), dtype=torch.int32) * tokens.shape[1]
        parts = [cu[:-1] + start for cu, start in zip(sequences, starts, strict=True)]
        bounds = torch.cat([*parts, torch.tensor([tokens.numel()], dtype=torch.int32)])
        tokens, targets, real = (x.reshape(1, -1) for x in (tokens, targets, real))
        where = torch.from_numpy(positions(bounds.numpy()))[None]
    else:
        where = torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
    return MicroBatch(
        tokens=tokens,
        targets=targets,
        positions=where,
        turns=turns_of(targets, bounds),
        spans=tuple(span for row in rows if row.real for span in row.spans),
        real=real,
        real_tokens=sum(row.real for row in rows),
        supervised=int((targets != IGNORE).sum()),
        length=tokens.shape[1],
        cu_seqlens=bounds,
    )


def deal(
    rows: Sequence[Row], micro_batch_size: int, dp_rank: int, dp_size: int, rounds: int = 1
) -> list[list[Row]]:
    """The micro-batches of data-parallel rank `dp_rank` from the rows of one global batch, a
    multiple of `rounds`.

    Rows of like length share a micro-batch, and ranks work on like lengths at the same time, which
    saves padding and waiting; packed rows, which have one length, are compared by the cost of
    their attention. The sum of losses over the global batch does not depend on it. The longest
    come first, so that too little memory shows at once. A remainder is filled with rows without
    targets.
    """
    order = sorted(rows, key=lambda row: row.work, reverse=True)  # stable: equals keep their order
    missing = -len(order) % (micro_batch_size * dp_size * rounds)
    order += [order[-1].silent()] * missing
    groups = [order[i : i + micro_batch_size] for i in range(0, len(order), micro_batch_size)]
    return groups[dp_rank::dp_size]
