"""Owns the balancing loss of routed experts; plain arithmetic on what a router has decided."""

from __future__ import annotations

import torch
import torch.distributed as dist


def load_balance(
    logits: torch.Tensor,
    chosen: torch.Tensor,
    counted: torch.Tensor,
    group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Balancing loss of one router: E * sum over experts of f * p (Switch Transformer,
    arXiv 2101.03961, equations 4 to 6), 1 where all experts are used alike.

    f is an expert's share of all choices, p its mean probability under a softmax over all experts.
    Only p has a gradient.

    Args:
        logits: of the router, [t, E].
        chosen: bool [t, E], as many True in each row.
        counted: bool [t]; other tokens, padding for example, do not count.
        group: ranks that hold the other tokens; each returns its own summand of the loss.

    Returns:
        the loss, and the number of tokens that count, both float32 scalars; 0 and 0 without tokens.
    """
    kept = counted[:, None]
    choices = (chosen & kept).sum(0).float()
    tokens = counted.sum().float()
    if group is not None and dist.get_world_size(group) > 1:
        both = torch.cat([choices, tokens[None]])
        dist.all_reduce(both, group=group)
        choices, tokens = both[:-1], both[-1]
    shares = choices / choices.sum().clamp(min=1)
    sums = (logits.softmax(-1, dtype=torch.float32) * kept).sum(0)
    return logits.shape[-1] * (shares * sums).sum() / tokens.clamp(min=1), tokens
