"""One forward pass: shapes, what the cache holds, and moving back in it."""

from collections.abc import Callable
from pathlib import Path


def _passes(directory: str) -> dict:
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.inference.stages import Stages
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel(1, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    model = build_model(read_model(Path(directory)), ParallelConfig(), dtype=torch.float32)
    load_weights(Path(directory), [model])
    try:
        Stages(model, torch.device("cpu"))
        refused = False
    except AssertionError:
        refused = True
    stages = Stages(model.eval(), torch.device("cpu"))
    ids = torch.arange(20).reshape(2, 10) + 5
    whole = stages.forward(ids)
    cache = stages.cache(2, 16)
    steps = [stages.forward(ids[:, a:b], cache)[:, 0] for a, b in ((0, 4), (4, 5), (5, 10))]
    end = cache.sequence_len_offset
    cache.sequence_len_offset = 4
    again = stages.forward(ids[:, 4:10], cache)[:, 0]
    wanted = [whole[:, 3], whole[:, 4], whole[:, 9]]
    return {
        "refused": refused, "shape": list(whole.shape), "end": end,
        "cached": max(float((a - b).abs().max()) for a, b in zip(steps, wanted, strict=True)),
        "moved back": float((again - whole[:, 9]).abs().max()),
    }  # fmt: skip


def test_cached_passes_equal_the_whole(tiny_chat_dir: Path, run_ranks: Callable) -> None:
    (found,) = run_ranks(1, _passes, str(tiny_chat_dir))
    assert found["refused"], "a model in training mode was accepted"
    assert found["shape"] == [2, 10, 480] and found["end"] == 10
    assert found["cached"] < 1e-4 and found["moved back"] < 1e-4
