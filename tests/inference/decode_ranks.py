"""Run on a rank: what one step gives beside what megatron-core's modules give."""

from pathlib import Path

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.inference.contexts import StaticInferenceContext

from mindspeed_llm.checkpoint.state import load_weights
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.inference.decode import Step
from mindspeed_llm.inference.stages import Stages
from mindspeed_llm.models.build import build_model
from mindspeed_llm.models.registry import read_model


def modules(model: torch.nn.Module, ids: torch.Tensor) -> list:
    """megatron-core's way: both rows in one cache, in step."""
    cache, found = StaticInferenceContext(2, 24), []

    def forward(fresh: torch.Tensor) -> None:
        start, length = cache.sequence_len_offset, fresh.shape[1]
        positions = torch.arange(start, start + length).expand(2, -1)
        with torch.no_grad():
            logits = model(fresh, positions, None, inference_context=cache,
                           runtime_gather_output=True)  # fmt: skip
        cache.increment_sequence_len_offset(length)
        found.append(logits[:, -1])

    forward(ids[:, :12])
    for at in range(12, 20):
        forward(ids[:, at : at + 1])
    cache.sequence_len_offset = 14  # back, and on with other ids
    forward(ids[:, 3:4])
    return found


def ours(model: torch.nn.Module, ids: torch.Tensor) -> list:
    """Two sequences of one step each, which are never at the same place."""
    stages = Stages(model, torch.device("cpu"), 24)
    one, other, found = stages.memory(), stages.memory(), []
    rows = ids.tolist()
    first = stages.step([(one, rows[0][:12]), (other, rows[1][:5])], [1, 0])[0]
    second = stages.step([(one, rows[0][12:13]), (other, rows[1][5:12])], [1, 1])
    found = [torch.stack((first, second[1]))]
    last = second[0]
    for at in range(12, 20):
        ends = [1, 1] if at < 19 else [0, 1]
        steps = [(one, rows[0][at + 1 : at + 2]), (other, rows[1][at : at + 1])]
        logits = stages.step(steps[0 if at < 19 else 1 :], ends[0 if at < 19 else 1 :])
        found.append(torch.stack((last, logits[-1])))
        last = logits[0]
    one.crop(14), other.crop(14)
    found.append(stages.step([(one, rows[0][3:4]), (other, rows[1][3:4])], [1, 1]))
    return found


def main(models: dict) -> dict:
    parallel_state.initialize_model_parallel(1, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    answers = {}
    ids = torch.arange(40).reshape(2, 20) + 5

    for name, directory in models.items():
        config = read_model(Path(directory))
        answers[name] = {}
        for dtype in (torch.float32, torch.bfloat16):
            spreads = []
            for device in ("cpu", "cuda"):  # whose kernels; the tensors stay here
                model = build_model(config, ParallelConfig(), dtype=dtype)
                load_weights(Path(directory), [model])
                model.eval().requires_grad_(False)
                plain = modules(model, ids)
                model.config.kernel_device = device
                found = ours(model, ids)
                spreads.append(max(float((a.float() - b.float()).abs().max())
                                   for a, b in zip(plain, found, strict=True)))  # fmt: skip
            shapes = {tuple(one.shape) for one in found}
            answers[name][str(dtype)] = [spreads, float(plain[-1].float().std()), list(*shapes)]
    wide = build_model(config, ParallelConfig(), dtype=torch.float32).eval()
    wide.decoder.layers[1].mlp.linear_fc1.adapter = torch.nn.Identity()
    try:
        Step(wide, 24)
    except AssertionError as err:
        answers["adapted"] = str(err)
    return answers
