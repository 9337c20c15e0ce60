"""Owns how the choice of kernels is shown: operation, kernel, why; it chooses nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def rows(device: str) -> list[dict[str, Any]]:
    """The kernels that a model's modules would take on `device`, both dtypes where they differ."""
    import torch

    from mindspeed_llm.kernels.table import overview

    found = []
    pairs = zip(overview(device, torch.bfloat16), overview(device, torch.float32), strict=True)
    for (name, half), (_, full) in pairs:
        choices = [("bf16", half), ("fp32", full)]
        if half.candidate == full.candidate:
            choices = [("", half)]
        for dtype, choice in choices:
            found.append({
                "op": f"{name} {dtype}".rstrip(), "kernel": choice.candidate.kernel,
                "in": choice.candidate.place, "why": choice.why,
                "fall_back": choice.is_fall_back,
            })  # fmt: skip
    return found


def table(found: list[dict[str, Any]], title: str | None = None) -> Table:
    """The same for the terminal."""
    from rich.table import Table

    shown = Table("op", "kernel", "why", title=title)
    for row in found:
        kernel = row["kernel"] + (" (fall-back)" if row["fall_back"] else "")
        shown.add_row(row["op"], kernel, row["why"])
    return shown
