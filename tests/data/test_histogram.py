"""Tests of mindspeed_llm.data.histogram: the picture of a data set."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mindspeed_llm.data.histogram import check_plot, draw
from mindspeed_llm.data.view import Counts
from mindspeed_llm.errors import ConfigError


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [1, 10, 4000, 17]])
def test_a_picture_appears_whole(tmp_path, lengths):
    pytest.importorskip("matplotlib")
    counts = Counts(np.array(lengths), np.arange(len(lengths)))
    check_plot(tmp_path / "a.png")
    draw(counts, tmp_path / "a.png", "costs $5 or $6_{")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_wrong_place_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="--plot .*a.pdf: expected a name that ends in .png"):
        check_plot(tmp_path / "a.pdf")
    with pytest.raises(ConfigError, match="no directory .*nowhere"):
        check_plot(tmp_path / "nowhere" / "a.png")


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib is not installed; pip install"):
        check_plot(tmp_path / "a.png")
