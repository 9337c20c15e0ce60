"""config.parallel: arithmetic of layouts and the errors that name flag and numbers."""

import pytest

from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.model import ModelConfig, RopeConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import ConfigError

MODEL = ModelConfig(
    family="test", num_layers=6, hidden_size=24, ffn_hidden_size=20, num_attention_heads=12,
    num_query_groups=4, head_dim=2, vocab_size=11, max_position_embeddings=32, norm_epsilon=1e-6,
    activation="silu", tie_word_embeddings=True, rope=RopeConfig(theta=1e4),
)  # fmt: skip


def layout(tp=1, pp=1, sp=False):
    return ParallelConfig(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=sp
    )


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
