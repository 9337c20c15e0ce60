"""Rank 0 works, the others follow and are let go, however the work ends."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mindspeed_llm.cli.leading import lead
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.inference import LoadSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.train import RuntimeSettings
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
    from mindspeed_llm.config.train import RuntimeSettings

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
