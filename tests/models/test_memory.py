"""models.memory against what real processes allocate, and its arithmetic on a published model."""

import dataclasses
import json
from pathlib import Path

import pytest

from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.models.memory import Run, peak, stage_memory
from mindspeed_llm.models.registry import FAMILIES, read_model

RANKS = Path(__file__).with_name("memory_ranks.py").read_text(encoding="utf-8")
PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SIZES = {"hidden_size": 128, "intermediate_size": 352}


@pytest.fixture(scope="module")
def directories(tiny_hf_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    sizes = {name: SIZES for name in FAMILIES} | {"phi3": {"intermediate_size": 352}}
    return {name: str(tiny_hf_model(name, folder / name, **sizes[name])) for name in FAMILIES}


@pytest.mark.parametrize("bf16", [pytest.param(False, marks=pytest.mark.slow), True])
def test_one_process(bf16, run_ranks, directories):
    (answer,) = run_ranks(1, RANKS, directories, 1, 1, False, bf16)
    check(answer["states"])
    for name, (found, expected) in answer["layers"].items():
        assert expected == pytest.approx(found, rel=0.05), name


@pytest.mark.parametrize(("tp", "pp", "sharded", "bf16"), [
    (2, 1, False, False), (1, 1, True, True),
    *(pytest.param(*row, marks=pytest.mark.slow)
      for row in ((2, 1, False, True), (1, 2, False, False))),
])  # fmt: skip
def test_two_processes(tp, pp, sharded, bf16, run_ranks, directories):
    wanted = {name: directories[name] for name in ("llama", "gemma2")}
    for answer in run_ranks(2, RANKS, wanted, tp, pp, sharded, bf16):
        check(answer["states"])


def test_experts_on_two_processes(run_ranks, directories):
    """With EP 2 each process has half of the experts, and the whole state of their optimizer."""
    wanted = {name: directories[name] for name in ("qwen3_moe", "mixtral")}
    for answer in run_ranks(2, RANKS, wanted, 1, 1, True, True, 2):
        check(answer["states"])


@pytest.mark.slow
@pytest.mark.parametrize(("pp", "cp", "layer_list"), [(2, 1, "1,3"), (1, 2, None)])
def test_uneven_stages_and_shared_rows(pp, cp, layer_list, run_ranks, directories):
    wanted = {name: directories[name] for name in ("llama", "gemma2")}
    more = (1, None, cp, layer_list)
    for answer in run_ranks(2, RANKS, wanted, 1, pp, pp == 1, True, *more, timeout=300):
        check(answer["states"])


def check(states):
    for name, parts in states.items():
        for part, (found, expected) in parts.items():
            assert expected == pytest.approx(found, rel=0.05), (name, part)


@pytest.fixture
def gemma2(tmp_path):
    config = PUBLISHED["Gemma 2 9B"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_model(tmp_path)


RUN = Run(parallel=ParallelConfig(), data_parallel=1, seq_length=8192)


def layout(tp, pp=1, dp=1, **more):
    parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
                              sequence_parallel=more.pop("sp", False))  # fmt: skip
    return dataclasses.replace(RUN, parallel=parallel, data_parallel=dp, **more)


def test_the_states_of_gemma2_9b(gemma2):
    """16 bytes a parameter in bfloat16: 2 weight, 4 gradient, 12 main weight and Adam; minus 0."""
    memory = peak(gemma2, RUN)
    count = 9_241_705_984
    assert (memory.parameters, memory.gradients, memory.optimizer) == (
        2 * count, 4 * count, 12 * count)  # fmt: skip
    assert peak(gemma2, layout(1, dp=4)).optimizer == 12 * count // 4
    assert peak(gemma2, layout(1, dp=4, distributed_optimizer=False)).optimizer == 12 * count
    assert peak(gemma2, layout(1, bf16=False)).optimizer == 8 * count


def test_what_cuts_activations(gemma2):
    plain = peak(gemma2, layout(8))
    assert peak(gemma2, layout(8, sp=True)).activations < plain.activations
    selective = peak(gemma2, layout(8, recompute="selective"))
    full = peak(gemma2, layout(8, recompute="full"))
    # with a soft cap the core of attention is computed again in any case
    assert full.activations < selective.activations == plain.activations
    assert plain.passing < selective.passing < full.passing


def test_context_parallelism_and_interleaved_stages(gemma2):
    def run(**layout):
        parallel = ParallelConfig(**layout)
        return dataclasses.replace(RUN, parallel=parallel, seq_length=4096)

    one, four = (peak(gemma2, run(context_parallel_size=cp)) for cp in (1, 4))
    assert four.parameters == one.parameters and 4 * four.optimizer == one.optimizer
    assert one.activations / 4 < four.activations < one.activations / 2
    model = dataclasses.replace(gemma2, num_layers=40, layer_types=gemma2.layer_types[:40])
    plain = run(pipeline_model_parallel_size=4)
    chunked = run(pipeline_model_parallel_size=4, num_virtual_stages_per_pipeline_rank=2)
    for stage in range(4):
        ours, theirs = (stage_memory(model, r, stage) for r in (chunked, plain))
        assert ours.parameters == theirs.parameters
    # 11 passes of half the layers instead of 4 of all
    ours, theirs = (stage_memory(model, r, 0).activations for r in (chunked, plain))
    assert ours / theirs == pytest.approx(11 / 2 / 4, rel=0.01)


def test_earlier_stages_wait_longer_and_the_last_has_the_head(gemma2):
    model = dataclasses.replace(gemma2, num_layers=40, layer_types=gemma2.layer_types[:40])
    run = layout(8, 4, seq_length=1024)
    stages = [stage_memory(model, run, stage) for stage in range(4)]
    assert stages[0].activations == 4 * stages[2].activations // 2 == 2 * stages[2].activations
    embedding = 256000 * 3584 // 8
    first, middle, last = (stages[i].parameters for i in (0, 1, 3))
    assert first - middle == 2 * embedding and last - middle == 2 * (embedding + 3584)
