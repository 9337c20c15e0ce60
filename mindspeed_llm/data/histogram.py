"""Owns the picture of a data set: how long its conversations are and how many answers they train.
Knows neither files of tokens nor how they are counted.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mindspeed_llm.data.view import Counts
from mindspeed_llm.errors import ConfigError

_BINS = 50


def check_plot(path: Path) -> None:
    """Raise ConfigError unless a picture can be drawn and `path` is a place for it."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--plot {path}: expected a name that ends in .png")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: no directory {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--plot {path}: matplotlib is not installed; pip install matplotlib (or "
            "mindspeed-llm[plot])"
        ) from None


def draw(counts: Counts, path: Path, title: str) -> None:
    """Write both histograms to `path` as PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.hist(counts.lengths, bins=min(_BINS, int(np.ptp(counts.lengths)) + 1))
    left.set(xlabel="tokens of a conversation", ylabel="conversations")
    values, times = np.unique(counts.answers, return_counts=True)
    right.bar(values, times)
    right.set(xlabel="trained answers of a conversation\n(stretches of supervised tokens)")
    right.set_xlim(-0.6, values.max() + 0.6)
    for axis in (right.xaxis, left.yaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    # Text as it stands: a name with dollar signs is no formula.
    figure.suptitle(title, parse_math=False)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
