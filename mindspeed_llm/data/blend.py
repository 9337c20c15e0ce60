"""Owns several prepared data sets trained as one: what they must have in common, their rows under
one numbering, and the order of samples by weight. Knows neither models nor ranks.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.manifest import Manifest
from mindspeed_llm.data.order import BlendOrder, RowAt, RowOrder, filled
from mindspeed_llm.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """How the samples of a split follow each other.

    Args:
        seed: of every permutation.
        shuffle: False: file order.
        fill: samples that an epoch is filled up to a multiple of (the global batch size); a blend
            by weight has no epoch of its own, so nothing is filled there.
        samples: where given, all epochs up to so many samples are shuffled as one.
    """

    seed: int = 1234
    shuffle: bool = True
    fill: int = 1
    samples: int | None = None


class Blend(torch.utils.data.Dataset):
    """The rows of one split of one or more data sets, numbered through.

    Args:
        members: data sets with at least one row each.
        weights: share of the samples that each gives, with any positive sum; None: each gives
            every row once an epoch.
    """

    def __init__(self, members: Sequence[SFTDataset],
                 weights: Sequence[Fraction] | None = None) -> None:  # fmt: skip
        self.members = list(members)
        sizes = [len(member) for member in members]
        self._ends = np.cumsum(sizes).tolist()
        self.weights = _integers(weights) if weights is not None and len(members) > 1 else None
        self.lengths = np.concatenate([member.lengths for member in members])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        member = bisect.bisect_right(self._ends, index)
        return self.members[member][index - self._start(member)]

    def _start(self, member: int) -> int:
        return self._ends[member - 1] if member else 0

    def epoch(self, fill: int = 1) -> int:
        """Samples of an epoch: as many as there are rows, filled up to a multiple of `fill`."""
        return -(-len(self) // fill) * fill

    def passes(self, samples: int) -> list[float]:
        """How often each data set is gone through in so many samples."""
        shares = self._shares()
        return [samples * share / sum(shares) / len(member)
                for share, member in zip(shares, self.members, strict=True)]  # fmt: skip

    def _shares(self) -> list[int]:
        return self.weights or [len(member) for member in self.members]

    def order(self, how: Ordering) -> RowAt:
        """Position in the stream of samples -> row number; the same in every process."""
        if self.weights is None:
            # Data sets without weights are one data set: one permutation over all their rows.
            together = 1 if how.samples is None else -(-how.samples // len(self))
            whole = RowOrder(len(self), seed=how.seed, shuffle=how.shuffle, together=together)
            return filled(whole.row, len(self), how.fill)
        between = BlendOrder(self.weights)
        streams = [
            RowOrder(len(member), seed=[how.seed, index + 1], shuffle=how.shuffle,
                     together=self._together(how, index))
            for index, member in enumerate(self.members)
        ]  # fmt: skip

        def at(position: int) -> int:
            member, within = between.pick(position)
            return self._start(member) + streams[member].row(within)

        return at

    def _together(self, how: Ordering, member: int) -> int:
        if how.samples is None:
            return 1
        return max(1, math.ceil(self.passes(how.samples)[member]))


def _integers(weights: Sequence[Fraction]) -> list[int]:
    common = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * common) for weight in weights]


def check_alike(prefixes: Sequence[str], manifests: Sequence[Manifest]) -> None:
    """Raise DataError unless the data sets were prepared with one tokenizer, template and packing.

    The message names the two that differ.
    """
    first, rest = manifests[0], manifests[1:]
    for prefix, manifest in zip(prefixes[1:], rest, strict=True):
        for what, value in _alike(manifest).items():
            expected = _alike(first)[what]
            if value != expected:
                raise DataError(f"--data-path: {prefixes[0]} and {prefix} cannot be trained "
                                f"together, their {what} differs: {_shown(expected)} and "
                                f"{_shown(value)}. Prepare one of them again")  # fmt: skip


def _alike(manifest: Manifest) -> dict[str, Any]:
    packing = manifest.packing
    return {
        "tokenizer": manifest.tokenizer_sha256,
        "template": (manifest.template, manifest.template_sha256[:12]),
        "packing": "not packed" if packing is None else
        f"packed rows of {packing.capacity} tokens, segments at multiples of {packing.multiple}",
    }  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]} ({value[1]})"
    return value[:12] if len(value) == 64 else value


def identity(manifests: Sequence[Manifest], weights: Sequence[Fraction] | None) -> str:
    """Hash that changes with any token, label or weight, and not with the files' names."""
    sums = []
    for manifest in manifests:
        files = [file["sha256"] for _, file in sorted(_by_key(manifest).items())]
        sums.append(hashlib.sha256("\n".join(files).encode()).hexdigest()[:16])
    if len(sums) == 1:
        return sums[0]
    shares = [] if weights is None else [str(weight / sum(weights)) for weight in weights]
    return hashlib.sha256("\n".join(sums + shares).encode()).hexdigest()[:16]


def _by_key(manifest: Manifest) -> dict[str, Any]:
    # Without the prefix, so that a data set may be moved or prepared again under another name.
    keys = {name.rpartition("_packed_")[2]: file for name, file in manifest.files.items()}
    return {name: file for name, file in keys.items() if name.endswith((".bin", ".idx"))}
