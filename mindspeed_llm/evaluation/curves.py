"""Owns the picture of an evaluation: right answers against the distance in turns. It knows results
only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw_recall(results: Mapping[str, Mapping[str, Any]], image: Path) -> str:
    """Draw the share of exact answers by distance, one panel a family and one for their mean.

    matplotlib is not a requirement: without it nothing is drawn.

    Args:
        results: name of a model -> its `recall.summary`; the models share distances and families.
        image: a .png that appears complete or not at all.

    Returns:
        A sentence for the user.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return f"no {image.name}: pip install matplotlib, and it is drawn"
    families = list(next(iter(results.values()))["family"])
    figure = Figure(figsize=(12, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 3, sharex=True, sharey=True).flat
    for axes, family in zip(panels, [*families, "mean"], strict=False):
        for name, result in results.items():
            rows = result["distance"] if family == "mean" else result["family_and_distance"][family]
            points = [(int(d), 100 * row["exact"]) for d, row in rows.items() if row["dialogues"]]
            axes.plot(*zip(*points, strict=True), "o-", label=name)
        axes.set_title(family, fontsize=10)
        axes.set_ylim(-4, 104)
        axes.set_xscale("log", base=2)
        axes.set_xticks([int(d) for d in next(iter(results.values()))["distance"]])
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.supxlabel("turns from what was told to the question")
    figure.supylabel("exact answers, %")
    fresh = image.with_suffix(".tmp")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(fresh, format="png")
    os.replace(fresh, image)
    return f"recall by distance: {image}"
