"""Owns the norm of many gradients in few calls; knows no optimizer and no rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def l2_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm of all elements together, float32 [1] on the tensors' device.

    The norms of the tensors stay on the device, so nothing waits for it.
    """
    norms = torch._foreach_norm(list(tensors), 2.0, torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms)).reshape(1)
