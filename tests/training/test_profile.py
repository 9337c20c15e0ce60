"""A trace holds the iterations that were asked for, and nothing else."""

import json

import pytest
import torch

from mindspeed_llm.training.profile import Trace


def test_a_trace_of_two_iterations(tmp_path):
    trace = Trace(tmp_path / "p", start=1, end=3, rank=0, device=torch.device("cpu"))
    for iteration in range(1, 6):
        with trace.around(iteration), torch.profiler.record_function(f"iteration {iteration}"):
            torch.ones(4, 4) @ torch.ones(4, 4)
    (path,) = (tmp_path / "p").iterdir()
    assert path.name == "trace-iterations-2-3-rank0.json" and path == trace.path
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"iteration 2", "iteration 3", "aten::mm"} <= names
    assert not {"iteration 1", "iteration 4", "iteration 5"} & names


def test_a_trace_ends_with_a_batch_that_is_left_out(tmp_path):
    trace = Trace(tmp_path, start=0, end=2, rank=0, device=torch.device("cpu"))
    with trace.around(1):
        torch.ones(4, 4) @ torch.ones(4, 4)
    with pytest.raises(ArithmeticError), trace.around(2):
        raise ArithmeticError
    assert json.loads(trace.path.read_text())["traceEvents"]
    assert not torch.autograd._profiler_enabled()
