"""The step in few calls gives what megatron-core's modules give, for every family."""

from collections.abc import Callable
from pathlib import Path

import pytest

FAMILIES = ("llama", "gemma", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")


def _steps(models: dict) -> dict:
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.inference.decode import Step, lay_out, single_step
    from mindspeed_llm.inference.stages import Stages
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel(1, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    cpu, answers = torch.device("cpu"), {}
    ids = torch.arange(40).reshape(2, 20) + 5

    def logits(model: torch.nn.Module, with_step: bool) -> tuple[list, Stages]:
        stages = Stages(model, cpu)
        if not with_step:
            stages._has_step = True
        cache = stages.cache(2, 24)
        found = [stages.forward(ids[:, :12], cache)]
        found += [stages.forward(ids[:, at : at + 1], cache) for at in range(12, 20)]
        cache.sequence_len_offset = 14  # back, and on with other ids
        return [*found, stages.forward(ids[:, 3:4], cache)], stages

    for name, directory in models.items():
        config = read_model(Path(directory))
        answers[name] = {}
        for dtype in (torch.float32, torch.bfloat16):
            model = build_model(config, ParallelConfig(), dtype=dtype)
            load_weights(Path(directory), [model])
            model.eval().requires_grad_(False)
            (plain, _), (ours, stages) = logits(model, False), logits(model, True)
            assert isinstance(stages._step, Step)
            spread = max(float((a.float() - b.float()).abs().max())
                         for a, b in zip(plain, ours, strict=True))  # fmt: skip
            shapes = {tuple(one.shape) for one in ours[1:]}
            answers[name][str(dtype)] = [spread, float(plain[-1].float().std()), list(*shapes)]
    wide = build_model(config, ParallelConfig(), dtype=torch.float32).eval()
    before = {name: value.clone() for name, value in wide.named_parameters()}
    lay_out(wide)
    answers["same values"] = all(
        torch.equal(value, before[name]) for name, value in wide.named_parameters()
    )
    layer = wide.decoder.layers[0]
    answers["strides"] = [
        layer.mlp.linear_fc1.weight.stride(),
        layer.mlp.linear_fc2.weight.stride(),
    ]
    model.decoder.layers[1].mlp.linear_fc1.adapter = torch.nn.Identity()
    answers["adapted"] = single_step(model, cpu) is None
    model.decoder.layers[1].mlp.linear_fc1.adapter = None
    answers["elsewhere"] = single_step(model, torch.device("meta")) is None
    cache = stages.cache(2, 2)
    stages.forward(ids[:, :2], cache)
    try:
        stages.forward(ids[:, :1], cache)
    except ValueError as err:
        answers["full"] = str(err)
    return answers


@pytest.fixture(scope="module")
def kept() -> dict:
    return {}


@pytest.fixture
def found(kept: dict, run_ranks: Callable, tiny_hf_model: Callable, tmp_path: Path) -> dict:
    if not kept:
        models = {name: str(tiny_hf_model(name, tmp_path / name)) for name in FAMILIES}
        (answers,) = run_ranks(1, _steps, models)
        kept.update(answers)
    return kept


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_modules(found: dict, family: str) -> None:
    spread, deviation, shape = found[family]["torch.float32"]
    assert deviation > 0.5 and spread < 1e-4 * deviation
    assert shape == [2, 1, 131]
    spread, deviation, _ = found[family]["torch.bfloat16"]
    assert spread < 0.15 * deviation


def test_wide_matrices_lie_along_one_tokens_product(found: dict) -> None:
    assert found["same values"]
    assert found["strides"] == [[1, 192], [96, 1]]


def test_where_the_modules_must_do_it(found: dict) -> None:
    assert found["adapted"] and found["elsewhere"]


def test_a_full_cache(found: dict) -> None:
    assert found["full"] == "3 positions do not fit a KV cache of 2"
