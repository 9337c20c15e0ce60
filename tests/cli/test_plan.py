"""`mindspeed-llm plan`: candidates, the choice, flags that training takes, errors."""

import json
import math
from pathlib import Path

import pytest

from mindspeed_llm.cli import plan
from mindspeed_llm.cli.main import run
from mindspeed_llm.cli.train import read_settings

PUBLISHED = Path(__file__).parents[1] / "models" / "published.json"
NEEDED = ["--load", "x", "--data-path", "x", "--lr", "1e-5", "--train-iters", "1"]


@pytest.fixture
def planned(tmp_path, capsys):
    """`planned(*flags, name="Gemma 2 9B")` -> (exit code, standard output, standard error)."""

    def call(*flags, name="Gemma 2 9B"):
        config = json.loads(PUBLISHED.read_text(encoding="utf-8"))[name]["config"]
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        code = run(plan.main, ["--model", str(tmp_path), *flags])
        return code, *capsys.readouterr()

    return call


EIGHT = ("--devices", "8", "--memory", "64GiB", "--seq-length", "8192")


def test_the_table_names_one_layout(planned):
    code, out, err = planned(*EIGHT)
    assert code == 0 and not err
    assert out.count("<- chosen") == 1 and "9.24 B parameters" in out


def test_every_layout_is_there_once_and_fits_the_model(planned):
    found = json.loads(planned(*EIGHT, "--json")[1])
    layouts = {(c["tensor_model_parallel_size"], c["pipeline_model_parallel_size"],
                c["data_parallel_size"]) for c in found["candidates"]}  # fmt: skip
    assert all(c["num_virtual_stages_per_pipeline_rank"] is None for c in found["candidates"])
    assert layouts == {(1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 8, 1), (2, 1, 4), (2, 2, 2), (2, 4, 1),
                       (4, 1, 2), (4, 2, 1), (8, 1, 1)}  # fmt: skip
    # 42 layers do not divide by 4 or 8
    lists = {c["pipeline_model_parallel_size"]: c["num_layer_list"] for c in found["candidates"]}
    assert lists == {1: None, 2: None, 4: "10,10,11,11", 8: "5,5,5,5,5,5,6,6"}
    assert len(found["candidates"]) == 3 * len(layouts)
    for candidate in found["candidates"]:
        assert candidate["sequence_parallel"] == (candidate["tensor_model_parallel_size"] > 1)
        memory = candidate["memory"]
        assert memory["total"] == sum(v for k, v in memory.items() if k != "total")


def test_the_choice_recomputes_least_then_splits_least(planned):
    def chosen(memory, *more):
        found = json.loads(planned("--devices", "8", "--memory", memory, "--seq-length", "8192",
                                   "--json", *more)[1])  # fmt: skip
        best = found["chosen"]
        assert best["memory"]["total"] <= found["limit"]
        size = best["tensor_model_parallel_size"] * best["pipeline_model_parallel_size"]
        return best["recompute"], size

    # the more memory there is, the less is recomputed, and then the less is split
    order = ["none", "selective", "full"]
    costs = [chosen(memory) for memory in ("30GiB", "64GiB", "200GiB", "800GiB")]
    costs = [(order.index(kind), size) for kind, size in costs]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1] == (0, 1)
    # the core of capped attention is computed again anyway: nothing is left for it to save
    assert {kind for kind, _ in costs} == {order.index("none"), order.index("full")}
    assert chosen("64GiB", "--micro-batch-size", "8")[0] == "full"  # larger micro-batches cost


def test_training_takes_the_flags(planned):
    chosen = json.loads(planned(*EIGHT, "--json")[1])["chosen"]
    settings, _ = read_settings([*chosen["flags"], *NEEDED])
    size = settings.parallel.tensor_model_parallel_size
    assert size == chosen["tensor_model_parallel_size"] > 1
    assert settings.parallel.sequence_parallel and settings.train.bf16
    for candidate in json.loads(planned(*EIGHT, "--json")[1])["candidates"]:
        read_settings([*candidate["flags"], *NEEDED])


def test_rows_are_shared_where_nothing_else_fits(planned):
    """128k tokens: the activations of one layer and of the head are too many by themselves."""
    flags = ("--devices", "16", "--devices-per-node", "1", "--memory", "24GiB", "--seq-length",
             "131072")  # fmt: skip
    found = json.loads(planned(*flags, "--json", name="Llama 3.2 1B")[1])
    chosen = found["chosen"]
    assert chosen["context_parallel_size"] > 1
    sizes = [chosen[f"{kind}_parallel_size"] for kind in ("context", "data")]
    assert math.prod(sizes) * chosen["pipeline_model_parallel_size"] == 16
    settings, _ = read_settings([*chosen["flags"], *NEEDED])
    assert settings.parallel.context_parallel_size == chosen["context_parallel_size"]
    alone = [c for c in found["candidates"] if c["context_parallel_size"] == 1]
    assert alone and all(c["memory"]["total"] > found["limit"] for c in alone)
    assert " CP " in planned(*flags, name="Llama 3.2 1B")[1]


def test_interleaved_stages_where_the_layers_divide(planned):
    """32 layers: 2 chunks on each of 2, 4 or 8 stages. The plain pipeline is taken, which makes no
    demand on the number of micro-batches; the other is named."""
    flags = ("--devices", "8", "--devices-per-node", "1", "--memory", "40GiB", "--seq-length",
             "4096")  # fmt: skip
    found = json.loads(planned(*flags, "--json", name="Llama 3.1 8B")[1])
    by_layout = {(c["pipeline_model_parallel_size"], c["num_virtual_stages_per_pipeline_rank"]): c
                 for c in found["candidates"] if c["recompute"] == "full"}  # fmt: skip
    assert {*by_layout} == {(1, None), *((pp, v) for pp in (2, 4, 8) for v in (None, 2))}
    plain, cut = (by_layout[4, v]["memory"] for v in (None, 2))
    assert cut["activations"] > plain["activations"] and cut["optimizer"] == plain["optimizer"]
    settings, _ = read_settings([*by_layout[4, 2]["flags"], *NEEDED])
    assert settings.parallel.num_virtual_stages_per_pipeline_rank == 2
    chosen = found["chosen"]
    assert chosen["pipeline_model_parallel_size"] > 1
    assert chosen["num_virtual_stages_per_pipeline_rank"] is None
    out = planned(*flags, name="Llama 3.1 8B")[1]
    assert " VPP " in out and "--num-virtual-stages-per-pipeline-rank 2 it fits too" in out
    assert f"a multiple of {chosen['pipeline_model_parallel_size']} micro-batches" in out


def test_nothing_fits(planned):
    code, out, err = planned("--devices", "2", "--memory", "8GiB", "--seq-length", "8192")
    assert code == 2 and "chosen" not in out
    assert "no layout of 2 devices fits 8GiB" in err and "the least is" in err


def test_tensor_parallelism_stays_in_one_machine(planned):
    found = json.loads(planned("--devices", "16", "--memory", "64GiB", "--seq-length", "8192",
                               "--devices-per-node", "4", "--json",
                               name="Llama 3.1 8B")[1])  # fmt: skip
    assert max(c["tensor_model_parallel_size"] for c in found["candidates"]) == 4


def test_a_length_beyond_the_model(planned):
    code, _, err = planned("--devices", "8", "--memory", "64GiB", "--seq-length", "8193")
    assert code == 2 and "--seq-length 8193 is beyond the model's 8192 positions" in err


def test_a_place_without_a_model(tmp_path, capsys):
    assert run(plan.main, ["--model", str(tmp_path / "no"), *EIGHT]) == 2
    assert "no such file" in capsys.readouterr().err


def test_experts_are_spread_over_devices(planned):
    """30 B parameters, of which 29 are experts'."""
    flags = ("--devices", "8", "--memory", "96GiB", "--seq-length", "4096")
    name = "Qwen3 30B A3B"
    found = json.loads(planned(*flags, "--json", name=name)[1])
    by_layout = {
        (c["tensor_model_parallel_size"], c["pipeline_model_parallel_size"],
         c["expert_model_parallel_size"], c["expert_tensor_parallel_size"]): c
        for c in found["candidates"] if c["recompute"] == "none"
        and c["num_virtual_stages_per_pipeline_rank"] is None
    }  # fmt: skip
    both = sum(1 if layout[1] == 1 else 2 for layout in by_layout)  # 48 layers: 2 x 8 divides them
    assert both * 3 == len(found["candidates"])
    assert {(1, 1, 1, None), (1, 1, 8, None), (2, 1, 4, None), (2, 1, 8, 1), (4, 2, 4, 1)} < {
        *by_layout
    }
    assert (2, 1, 8, None) not in by_layout and (4, 1, 2, 1) not in by_layout
    one, eight = (by_layout[1, 1, ep, None]["memory"] for ep in (1, 8))
    experts = 48 * 128 * 3 * 2048 * 768
    assert one["parameters"] - eight["parameters"] == 2 * experts * 7 // 8
    assert one["optimizer"] == eight["optimizer"]  # spread over eight replicas, or over EP 8
    settings, _ = read_settings([*by_layout[2, 1, 8, 1]["flags"], *NEEDED])
    assert settings.parallel.expert_model_parallel_size == 8
    assert settings.parallel.expert_tensor_parallel_size == 1
    code, out, err = planned(*flags, name=name)
    assert "of TP" in out and code == 0 and not err
