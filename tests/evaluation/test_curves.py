"""The picture of right answers against the distance."""

from pathlib import Path

import pytest

from mindspeed_llm.evaluation.curves import draw_recall
from mindspeed_llm.evaluation.dialogues import test_set as draw_test_set
from mindspeed_llm.evaluation.recall import score, summary


def test_two_models_in_one_picture(tmp_path: Path) -> None:
    made = draw_test_set(2, 0, (2, 4))
    results = {}
    for name, text in (("base", "no"), ("tuned", "4182")):
        outcomes = [score(d, [(text, True) for t in d.turns if t.probe]) for d in made]
        results[name] = summary(outcomes)
    image = tmp_path / "new" / "recall.png"
    assert str(image) in draw_recall(results, image)
    assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 10_000
    assert [path.name for path in image.parent.iterdir()] == ["recall.png"]


def test_without_matplotlib_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in draw_recall({}, tmp_path / "recall.png")
    assert not list(tmp_path.iterdir())
