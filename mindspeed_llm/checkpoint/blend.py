"""Owns weights between two others: those a run started from and those it ended with. It knows no
files and no flags.

Tuning for one thing loses some of all others. On the straight line back to where it began a model
regains what it lost sooner than it loses what it learnt (Wortsman et al., "Robust fine-tuning of
zero-shot models", CVPR 2022, WiSE-FT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mindspeed_llm.checkpoint.store import Stored, TensorSource


class BlendedSource:
    """`first + share * (last - first)`, computed in float32.

    Args:
        first: the weights that tuning started from.
        last: the tuned ones, of the same names and shapes; what is read has their dtypes.
        share: how far to go from `first` to `last`; 1 is `last`.
    """

    def __init__(self, first: TensorSource, last: TensorSource, share: float) -> None:
        self._first, self._last, self._share = first, last, share
        self.tensors: Mapping[str, Stored] = last.tensors

    def read(self, key: str, offset: Sequence[int], out: torch.Tensor) -> None:
        """Fill `out` with the box of `key` that begins at `offset`; casts to `out`'s dtype."""
        start, end = torch.empty((2, *out.shape), dtype=torch.float32)
        self._first.read(key, offset, start)
        self._last.read(key, offset, end)
        out.copy_(start.lerp_(end, self._share))
