"""A step over sequences of any lengths gives what megatron-core's modules give, by family."""

from collections.abc import Callable
from pathlib import Path

import pytest

RANKS = Path(__file__).with_name("decode_ranks.py").read_text(encoding="utf-8")
FAMILIES = ("qwen3_moe", "mixtral", "llama", "gemma", "mistral", "qwen2", "qwen3", "gemma2",
            "gemma3", "phi3")  # fmt: skip


@pytest.fixture(scope="module")
def kept() -> dict:
    return {}


@pytest.fixture
def found(kept: dict, run_ranks: Callable, tiny_hf_model: Callable, tmp_path: Path) -> dict:
    if not kept:
        models = {name: str(tiny_hf_model(name, tmp_path / name)) for name in FAMILIES}
        (answers,) = run_ranks(1, RANKS, models)
        kept.update(answers)
    return kept


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_modules(found: dict, family: str) -> None:
    """Both as it is written for a CPU and with the kernels of an accelerator."""
    spreads, deviation, shape = found[family]["torch.float32"]
    assert deviation > 0.5 and max(spreads) < 1e-4 * deviation
    assert shape == [2, 131]
    spreads, deviation, _ = found[family]["torch.bfloat16"]
    assert max(spreads) < 0.15 * deviation


def test_an_adapter_is_not_forgotten(found: dict) -> None:
    assert found["adapted"] == "merge the adapter: a step runs on the weights alone"
