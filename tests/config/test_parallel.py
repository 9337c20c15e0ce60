"""config.parallel: arithmetic of layouts and the errors that name flag and numbers."""

import dataclasses

import pytest

from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.model import ExpertsConfig, ModelConfig, RopeConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import ConfigError

MODEL = ModelConfig(
    family="test", num_layers=6, hidden_size=24, ffn_hidden_size=20, num_attention_heads=12,
    num_query_groups=4, head_dim=2, vocab_size=11, max_position_embeddings=32, norm_epsilon=1e-6,
    activation="silu", tie_word_embeddings=True, rope=RopeConfig(theta=1e4),
)  # fmt: skip


EXPERTS = dataclasses.replace(MODEL, experts=ExpertsConfig(
    num_experts=6, top_k=2, ffn_hidden_size=10, renormalized=True, layers=tuple(range(6))
))  # fmt: skip


def layout(tp=1, pp=1, sp=False, ep=1, etp=None):
    return ParallelConfig(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=sp,
        expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
    )  # fmt: skip


def test_is_read_from_megatrons_flags():
    argv = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "3",
            "--sequence-parallel"]  # fmt: skip
    (config,) = parse(argv, ParallelConfig, prog="test")
    assert config == layout(2, 3, True)


@pytest.mark.parametrize(("tp", "pp", "sp", "message"), [
    (0, 1, False, "--tensor-model-parallel-size is 0"),
    (1, -1, False, "--pipeline-model-parallel-size is -1"),
    (1, 1, True, "--sequence-parallel needs --tensor-model-parallel-size 2"),
])  # fmt: skip
def test_impossible_layouts_are_refused(tp, pp, sp, message):
    with pytest.raises(ConfigError, match=message):
        layout(tp, pp, sp)


def test_context_parallel_ranks():
    config = ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=4)
    assert config.data_parallel_size(16) == 2 and config.length_multiple == 4
    with pytest.raises(ConfigError, match="12 processes do not divide into TP 2 x PP 1 x CP 4 = 8"):
        config.data_parallel_size(12)
    both = ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=4,
                          sequence_parallel=True)  # fmt: skip
    assert both.length_multiple == 8
    with pytest.raises(ConfigError, match="--context-parallel-size is 0"):
        ParallelConfig(context_parallel_size=0)


def test_names_of_the_one_exchange_of_keys():
    argv = ["--context-parallel-size", "2", "--cp-comm-type", "all_gather",
            "--context-parallel-algo", "kvallgather_cp_algo"]  # fmt: skip
    (config,) = parse(argv, ParallelConfig, prog="test")
    assert config.context_parallel_size == 2
    for flag, name in (("--cp-comm-type", "p2p"), ("--context-parallel-algo", "ulysses_cp_algo")):
        with pytest.raises(ConfigError, match=f"{flag}.*{name}"):
            parse([*argv, flag, name], ParallelConfig, prog="test")
    with pytest.raises(ConfigError, match="--cp-comm-type has no effect without --context-par"):
        ParallelConfig(cp_comm_type="all_gather")


def test_data_parallel_size():
    assert layout(2, 3).data_parallel_size(24) == 4
    with pytest.raises(ConfigError, match="8 processes do not divide into TP 2 x PP 3 = 6"):
        layout(2, 3).data_parallel_size(8)


@pytest.mark.parametrize(("tp", "pp", "message"), [
    (5, 1, r"--tensor-model-parallel-size 5 .*12 attention heads; use one of \[1, 2, 3, 4, 6, 12"),
    (6, 1, r"6 does not divide the model's 4 query groups .*use one of \[1, 2, 4\]"),
    (1, 4, r"--pipeline-model-parallel-size 4 .*6 layers; use one of \[1, 2, 3, 6\]"),
])  # fmt: skip
def test_a_layout_that_does_not_fit_names_flag_and_sizes(tp, pp, message):
    with pytest.raises(ConfigError, match=message):
        layout(tp, pp).check_model(MODEL)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 3), (4, 6)])
def test_layouts_that_fit(tp, pp):
    layout(tp, pp).check_model(MODEL)


@pytest.mark.parametrize(("tp", "size"), [(1, 131), (2, 132), (4, 132), (8, 136)])
def test_the_vocabulary_is_padded_to_a_multiple_of_tp(tp, size):
    assert layout(tp).padded_vocab_size(131) == size


@pytest.mark.parametrize(("tp", "ep", "etp", "message"), [
    (1, 0, None, "--expert-model-parallel-size is 0"),
    (4, 4, 2, "--expert-tensor-parallel-size is 2; expected 1 or TP, 4"),
    (4, 2, 1, "--expert-model-parallel-size a multiple of them"),
])  # fmt: skip
def test_impossible_layouts_of_experts_are_refused(tp, ep, etp, message):
    with pytest.raises(ConfigError, match=message):
        layout(tp, ep=ep, etp=etp)


@pytest.mark.parametrize(("changes", "size", "replicas"), [
    ({"ep": 2}, 2, 2), ({"pp": 2, "ep": 2}, 4, 2), ({"tp": 2, "ep": 2}, 4, 2),
    ({"tp": 2, "ep": 2, "etp": 1}, 2, 1), ({"tp": 2, "ep": 4, "etp": 1}, 4, 2),
])  # fmt: skip
def test_ranks_that_share_experts_are_of_one_replica(changes, size, replicas):
    parallel = layout(**changes)
    assert parallel.replica_size == size
    assert parallel.data_parallel_size(size) == replicas
    assert parallel.data_parallel_size(2 * size) == 2 * replicas


def test_a_number_of_processes_that_experts_do_not_divide():
    with pytest.raises(ConfigError, match="3 processes do not divide into EP 2 .*multiple of 2"):
        layout(ep=2).data_parallel_size(3)


@pytest.mark.parametrize(("model", "changes", "message"), [
    (MODEL, {"ep": 2}, "--expert-model-parallel-size: this test model has no experts"),
    (MODEL, {"etp": 1}, "--expert-tensor-parallel-size: this test model has no experts"),
    (EXPERTS, {"ep": 4}, r"4 does not divide the model's 6 experts; use one of \[1, 2, 3, 6\]"),
    (EXPERTS, {"tp": 4}, "the width 10 of an expert does not divide by 4"),
])  # fmt: skip
def test_a_layout_that_does_not_fit_the_experts(model, changes, message):
    with pytest.raises(ConfigError, match=message):
        layout(**changes).check_model(model)


def test_the_width_of_an_mlp_that_no_layer_has_does_not_count():
    narrow = dataclasses.replace(EXPERTS, ffn_hidden_size=7)
    layout(2).check_model(narrow)
    few = dataclasses.replace(narrow.experts, layers=(0,))
    with pytest.raises(ConfigError, match="7 ffn hidden size"):
        layout(2).check_model(dataclasses.replace(narrow, experts=few))


@pytest.mark.parametrize(("argv", "layers", "chunks"), [
    ("--pipeline-model-parallel-size 3", [2, 2, 2], 1),
    ("--pipeline-model-parallel-size 2 --num-layer-list 4,2", [4, 2], 1),
    ("--pipeline-model-parallel-size 3 --decoder-first-pipeline-num-layers 4", [4, 1, 1], 1),
    ("--pipeline-model-parallel-size 3 --decoder-last-pipeline-num-layers 4", [1, 1, 4], 1),
    ("--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 5 "
     "--decoder-last-pipeline-num-layers 1", [5, 1], 1),
    ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1", [3, 3], 3),
    ("--pipeline-model-parallel-size 3 --num-virtual-stages-per-pipeline-rank 2", [2, 2, 2], 2),
])  # fmt: skip
def test_layers_of_stages(argv, layers, chunks):
    (config,) = parse(argv.split(), ParallelConfig, prog="test")
    config.check_model(MODEL)
    assert config.stage_layers(6) == layers and config.virtual_stages(6) == chunks


@pytest.mark.parametrize(("argv", "message"), [
    ("--num-layer-list 6", "--num-layer-list has no effect without --pipeline-model"),
    ("--num-virtual-stages-per-pipeline-rank 2", "has no effect without --pipeline-model"),
    ("--pipeline-model-parallel-size 2 --num-layer-list 3,x", "'3,x'; expected the layers of"),
    ("--pipeline-model-parallel-size 2 --num-layer-list 6,0", "'6,0'; expected the layers of"),
    ("--pipeline-model-parallel-size 2 --num-layer-list 2,2,2", "3 stages, but --pipeline-model-p"),
    ("--pipeline-model-parallel-size 2 --num-layer-list 3,2", "5 layers, and the model has 6"),
    ("--pipeline-model-parallel-size 2 --num-layer-list 3,3 --decoder-last-pipeline-num-layers 3",
     "--num-layer-list and --decoder-last-pipeline-num-layers both say"),
    ("--pipeline-model-parallel-size 3 --decoder-last-pipeline-num-layers 3",
     "leave 3 of the model's 6 layers to 2 stages"),
    ("--pipeline-model-parallel-size 2 --decoder-last-pipeline-num-layers 6",
     "leave 0 of the model's 6 layers to 1 stages"),
    ("--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 2 "
     "--decoder-last-pipeline-num-layers 2", "leave 2 of the model's 6 layers to 0 stages"),
    ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 3",
     "--num-layers-per-virtual-pipeline-stage 3 does not cut the 3 layers"),
    ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
     "--num-virtual-stages-per-pipeline-rank 2 does not cut the 3 layers"),
    ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 0",
     "--num-virtual-stages-per-pipeline-rank is 0"),
    ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 3 "
     "--num-layers-per-virtual-pipeline-stage 1", "both say which stage"),
])  # fmt: skip
def test_stages_that_cannot_be(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse(argv.split(), ParallelConfig, prog="test")[0].check_model(MODEL)


@pytest.mark.parametrize(("layout", "layers"), [
    ({}, [[0, 1, 2], [3, 4, 5]]),
    ({"num_layer_list": "2,4"}, [[0, 1], [2, 3, 4, 5]]),
    ({"decoder_first_pipeline_num_layers": 1}, [[0], [1, 2, 3, 4, 5]]),
    ({"num_virtual_stages_per_pipeline_rank": 3}, [[0, 2, 4], [1, 3, 5]]),
    ({"num_layers_per_virtual_pipeline_stage": 1}, [[0, 2, 4], [1, 3, 5]]),
])  # fmt: skip
def test_which_layers_a_stage_has(layout, layers):
    parallel = ParallelConfig(pipeline_model_parallel_size=2, **layout)
    assert [parallel.layers_of(6, stage) for stage in range(2)] == layers
