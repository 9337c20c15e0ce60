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
        Stages(model, torch.device("cpu"), 16)
        refused = False
    except AssertionError:
        refused = True
    ids = torch.arange(20).reshape(2, 10) + 5
    with torch.no_grad():
        whole = model.eval()(ids, torch.arange(10).expand(2, -1), None, runtime_gather_output=True)
    stages = Stages(model, torch.device("cpu"), 16)
    held, row = stages.memory(), ids[1].tolist()
    steps = [stages.step([(held, row[a:b])], [b - a]) for a, b in ((0, 4), (4, 5), (5, 10))]
    end = held.length
    held.crop(4)
    again = stages.step([(held, row[4:10])], [1])
    nothing = stages.step([(held, row[:1])], [0])
    try:
        stages.step([(held, row[:6])], [1])
        full = ""
    except ValueError as err:
        full = str(err)
    return {
        "refused": refused, "shape": list(whole.shape), "end": end,
        "cached": float((torch.cat(steps) - whole[1]).abs().max()), "nothing": nothing is None,
        "moved back": float((again[0] - whole[1, 9]).abs().max()), "full": full,
    }  # fmt: skip


def test_cached_passes_equal_the_whole(tiny_chat_dir: Path, run_ranks: Callable) -> None:
    (found,) = run_ranks(1, _passes, str(tiny_chat_dir))
    assert found["refused"], "a model in training mode was accepted"
    assert found["shape"] == [2, 10, 480] and found["end"] == 10
    assert found["nothing"] and found["full"] == "17 positions do not fit a KV cache of 16"
    assert found["cached"] < 1e-4 and found["moved back"] < 1e-4
