"""What the tests of training share: a tiny model with a prepared data set, and its command line."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def material(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_chat_model: Callable[[str], Path],
    tiny_sft_data: Callable[..., Path],
    tiny_tokenizer_dir: Path,
) -> dict[str, str]:
    """`{"gemma2": model directory, "data": prefix}`; 24 rows of 6 to 30 tokens."""
    prefix = tmp_path_factory.mktemp("sft") / "rows"
    tiny_sft_data(prefix, tiny_tokenizer_dir)
    return {"gemma2": str(tiny_chat_model("gemma2")), "data": str(prefix)}


@pytest.fixture
def flags(material: dict[str, str]) -> list[str]:
    """A command line for three iterations of 8 rows in micro-batches of 2."""
    return [
        "--load", material["gemma2"], "--data-path", material["data"], "--seq-length", "32",
        "--train-iters", "3", "--micro-batch-size", "2", "--global-batch-size", "8",
        "--lr", "1e-3", "--lr-decay-style", "constant",
    ]  # fmt: skip
