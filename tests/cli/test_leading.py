"""Rank 0 works, the others follow and are let go, however the work ends."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mindspeed_llm.cli import leading
from mindspeed_llm.cli.leading import lead
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.inference import LoadSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import RuntimeSettings
from mindspeed_llm.errors import CheckpointError, ConfigError


def test_a_wrong_backend_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--distributed-backend nccl"):
        lead(LoadSettings(load=tmp_path), RuntimeSettings(device="cpu", distributed_backend="nccl"),
             ParallelConfig(), ArchitectureFlags(), lambda parts, engine: None)  # fmt: skip


def test_a_missing_checkpoint_starts_no_work(tmp_path: Path) -> None:
    def never(parts: object, engine: object) -> None:
        raise AssertionError("there is no model")

    with pytest.raises(CheckpointError, match="--load"):
        lead(LoadSettings(load=tmp_path / "absent"), RuntimeSettings(device="cpu"),
             ParallelConfig(), ArchitectureFlags(), never)  # fmt: skip


FAILING = """
import mindspeed_llm.device.runtime as runtime

runtime.shutdown_distributed = lambda: None  # the runner of this script leaves the group itself


def main(directory):
    from pathlib import Path
    from mindspeed_llm.cli.leading import lead
    from mindspeed_llm.config.architecture import ArchitectureFlags
    from mindspeed_llm.config.inference import LoadSettings
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.config.run import RuntimeSettings

    def work(parts, engine):
        _, tokens = engine.stream([3, 4, 5], max_new_tokens=50)
        next(tokens)
        tokens.close()
        raise RuntimeError("in the middle")

    try:
        return lead(LoadSettings(load=Path(directory)), RuntimeSettings(device="cpu"),
                    ParallelConfig(tensor_model_parallel_size=2), ArchitectureFlags(), work)
    except RuntimeError as err:
        return str(err)
"""


def test_work_that_fails_lets_the_others_go(tiny_chat_dir: Path, run_ranks: Callable) -> None:
    assert run_ranks(2, FAILING, str(tiny_chat_dir)) == ["in the middle", 0]


def test_ctrl_c_in_a_step_leaves_at_once_and_between_steps_as_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    press = "def step(): leading._interrupt(2, sys._getframe())"
    inside = {"__name__": "mindspeed_llm.inference.engine", "leading": leading, "sys": sys}
    exec(press, inside)
    with pytest.raises(SystemExit) as left:
        inside["step"]()
    assert left.value.code == 130
    with pytest.raises(KeyboardInterrupt):
        leading._interrupt(signal.SIGINT, sys._getframe())


def test_a_follower_leaves_quietly_only_after_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        pressed = False

        def follow(self) -> None:
            if self.pressed:
                signal.raise_signal(signal.SIGINT)
            raise RuntimeError("Connection closed by peer")

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(RuntimeError, match="closed by peer"):
            leading._follow(Broken())
        Broken.pressed = True
        with pytest.raises(SystemExit) as left:
            leading._follow(Broken())
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.code == 130
