"""Owns the turn that a trained position belongs to, for losses by turn. Knows no model.

A turn is a stretch of trained tokens in a row; the n-th of a conversation has number n. That is
the n-th answer where all answers are trained, and the n-th trained one elsewhere.
"""

from __future__ import annotations

import torch

from mindspeed_llm.data.render import IGNORE

MOST = 16  # turns told apart; later ones count with the last


def turns_of(targets: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    """Number of each target's turn, from 1 on; 0 where nothing is trained.

    Args:
        targets: int64 [rows, length], a token or IGNORE.
        cu_seqlens: where the conversations of a packed [1, length] begin, and the length; None
            where each row is one.

    Returns:
        int64 [rows, length].
    """
    trained = targets != IGNORE
    before = torch.zeros_like(trained)
    before[:, 1:] = trained[:, :-1]
    starts = torch.zeros_like(trained)
    if cu_seqlens is not None:
        # A row may end in padding, which is a sequence of its own; the last bound is the length.
        starts[:, cu_seqlens[:-1].long().to(targets.device)] = True
    else:
        starts[:, 0] = True
    count = (trained & (~before | starts)).cumsum(1)
    # What was counted before the conversation began, carried on to its end.
    earlier = torch.where(starts, count - (trained & starts).long(), 0).cummax(1).values
    return torch.where(trained, count - earlier, 0)
