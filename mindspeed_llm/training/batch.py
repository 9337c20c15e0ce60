"""Owns how rows of a data set become micro-batches: the shift of labels, the order inside a global
batch, padding, and which data-parallel rank gets what. Knows neither models nor losses.

Labels are shifted here, before anything is padded or sliced: `targets[i]` is the token that follows
`tokens[i]`. The last token of a row is never an input and the first never a target, so both are
dropped. Every pipeline stage makes the same micro-batches from the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from mindspeed_llm.data.collate import collate
from mindspeed_llm.data.render import IGNORE


@dataclasses.dataclass(frozen=True)
class Row:
    """One shifted row: `tokens` and `targets`, int64 [length]; targets are a token or IGNORE."""

    tokens: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return self.tokens.numel()

    @classmethod
    def shifted(cls, sample: Mapping[str, torch.Tensor]) -> Row:
        """From a data set's sample: `input_ids` and unshifted `labels`, int64 [length >= 2]."""
        return cls(tokens=sample["input_ids"][:-1], targets=sample["labels"][1:])

    def silent(self) -> Row:
        """The same tokens without a target: fills a micro-batch without changing the loss."""
        return Row(tokens=self.tokens, targets=torch.full_like(self.targets, IGNORE))


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Input of one forward pass, padded on the right (causal attention never looks there).

    `tokens`, `targets` and `positions` are int64 [rows, length]; `real_tokens` counts inputs that
    are not padding, `supervised` the targets that are trained.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    real_tokens: int
    supervised: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "targets", "positions")
        }
        return dataclasses.replace(self, **moved)


def stack(rows: Sequence[Row], *, pad_id: int, length: int | None, multiple: int) -> MicroBatch:
    """Pad `rows` to `length`, or to the longest of them rounded up to a multiple of `multiple`.

    `pad_id` may be any token of the vocabulary: what stands there is neither seen nor trained.
    """
    batch = collate(
        [{"input_ids": row.tokens, "labels": row.targets} for row in rows],
        pad_id=pad_id,
        seq_length=length,
        pad_to_multiple_of=multiple,
    )
    tokens, targets = batch["input_ids"], batch["labels"]
    positions = torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
    return MicroBatch(
        tokens=tokens,
        targets=targets,
        positions=positions,
        real_tokens=int(batch["lengths"].sum()),
        supervised=int((targets != IGNORE).sum()),
    )


def deal(rows: Sequence[Row], micro_batch_size: int, dp_rank: int, dp_size: int) -> list[list[Row]]:
    """The micro-batches of data-parallel rank `dp_rank` from the rows of one global batch.

    Rows of like length share a micro-batch, and ranks work on like lengths at the same time, which
    saves padding and waiting; the sum of losses over the global batch does not depend on it. The
    longest come first, so that too little memory shows at once. A remainder is filled with rows
    without targets.
    """
    order = sorted(rows, key=len, reverse=True)  # stable: equal lengths keep their order
    missing = -len(order) % (micro_batch_size * dp_size)
    order += [order[-1].silent()] * missing
    groups = [order[i : i + micro_batch_size] for i in range(0, len(order), micro_batch_size)]
    return groups[dp_rank::dp_size]
