"""TensorBoard gets the numbers under the names of train.jsonl; without it the command is said."""

import sys

import pytest

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.training.board import Board, check_tensorboard


def test_scalars_by_iteration_and_turn(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path, after=0)
    for iteration in (1, 2, 3):
        board.write({"iteration": iteration, "loss": float(iteration), "mfu": None})
    board.write({"iteration": 3, "validation_turn_losses": {"1": 0.5, "2": 0.25}})
    board.write({"iteration": 3, "event": "skipped", "why": "loss is nan"})
    board.write({"iteration": 2, "event": "rollback", "from": 3, "why": "loss is nan"})
    board.cut(2)
    board.write({"iteration": 3, "loss": 9.0})
    seen = EventAccumulator(str(tmp_path)).Reload()
    losses = [(event.step, event.value) for event in seen.Scalars("loss")]
    assert losses == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert set(seen.Tags()["scalars"]) == {
        "loss", "validation_turn_losses/1", "validation_turn_losses/2",
    }  # fmt: skip


def test_without_tensorboard_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install \"mindspeed-llm\[tensorboard\]\""):
        check_tensorboard()
