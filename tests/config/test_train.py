"""Settings refuse what contradicts itself, with the flag, the value and the mend."""

import dataclasses

import pytest

from mindspeed_llm.config import train as config
from mindspeed_llm.config.model import ExpertsConfig, ModelConfig, RopeConfig
from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import (
    CheckpointSettings,
    ControlSettings,
    LogSettings,
    RuntimeSettings,
)
from mindspeed_llm.config.train_data import TrainDataConfig
from mindspeed_llm.errors import ConfigError


def settings(**kinds):
    made = {
        "train": config.TrainConfig(seq_length=32, train_iters=10),
        "data": TrainDataConfig(data_path=("x",)),
        "optimizer": OptimizerSettings(lr=1e-3),
        "checkpoint": CheckpointSettings(load="x"),
        "log": LogSettings(),
        "runtime": RuntimeSettings(),
        "parallel": ParallelConfig(),
    }
    return config.Settings(**(made | kinds))


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("TrainConfig", {"seq_length": 32}, "--train-iters N and --epochs X"),
        ("TrainConfig", {"seq_length": 32, "train_iters": 1, "epochs": 1.0}, "exactly one"),
        ("TrainConfig", {"seq_length": 1, "train_iters": 1}, "--seq-length is 1"),
        ("TrainConfig", {"seq_length": 8, "epochs": float("nan")}, "--epochs is nan"),
        ("TrainConfig", {"seq_length": 8, "train_iters": 1, "hidden_dropout": 1.0},
         "--hidden-dropout is 1.0"),
        ("TrainConfig", {"seq_length": 8, "train_iters": 1, "recompute_granularity": "full"},
         "--recompute-num-layers"),
        ("TrainConfig", {"seq_length": 8, "train_iters": 1, "recompute_method": "block"},
         "no effect"),
        ("TrainConfig", {"seq_length": 8, "train_iters": 1, "micro_batch_size": 0},
         "--micro-batch-size is 0"),
        ("TrainConfig", {"seq_length": 8, "train_iters": 1, "moe_aux_loss_coeff": -0.1},
         "--moe-aux-loss-coeff is -0.1"),
        ("TrainConfig", {"seq_length": 8, "train_iters": 1, "moe_aux_loss_coeff": 0.1,
                         "moe_router_load_balancing_type": "none"}, "contradicts"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_flag(kind, fields, words):
    with pytest.raises(ConfigError, match=words):
        getattr(config, kind)(**fields)


def test_global_batch_is_a_multiple_of_micro_batch_times_ranks():
    train = config.TrainConfig(
        seq_length=8, train_iters=1, micro_batch_size=2, global_batch_size=10
    )
    assert train.batch_size(1) == 10
    with pytest.raises(ConfigError, match=r"10 is not a multiple .* 2 x 2 .* = 4; .* 12"):
        train.batch_size(2)
    plain = config.TrainConfig(seq_length=8, train_iters=1, micro_batch_size=3)
    assert plain.batch_size(4) == 12


def test_epochs_are_rounded_up_to_iterations():
    train = config.TrainConfig(seq_length=8, epochs=2.0)
    assert train.iterations(rows=10, batch_size=4) == 5
    assert train.iterations(rows=11, batch_size=4) == 6
    assert config.TrainConfig(seq_length=8, epochs=0.01).iterations(10, 4) == 1


def test_sequence_parallel_rounds_lengths_to_tensor_parallel_ranks():
    parallel = ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True)
    fixed = settings(parallel=parallel)
    assert fixed.length_multiple == 4
    free = TrainDataConfig(data_path=("x",), variable_seq_lengths=True, pad_to_multiple_of=6)
    assert settings(parallel=parallel, data=free).length_multiple == 12
    assert settings(data=free).length_multiple == 6
    with pytest.raises(ConfigError, match="--seq-length 30 is not a multiple of 4, into which "
                       "--sequence-parallel at --tensor-model-parallel-size 4 cut it"):  # fmt: skip
        settings(parallel=parallel, train=config.TrainConfig(seq_length=30, train_iters=1))


def test_context_parallel_rounds_lengths():
    parallel = ParallelConfig(context_parallel_size=3)
    assert settings(parallel=parallel, train=config.TrainConfig(seq_length=6, train_iters=1))
    with pytest.raises(ConfigError, match="--seq-length 8 is not a multiple of 3, into which "
                       "--context-parallel-size 3 cut it"):  # fmt: skip
        settings(parallel=parallel, train=config.TrainConfig(seq_length=8, train_iters=1))


def test_log_directory_follows_save(tmp_path):
    assert settings().log_dir is None
    saving = CheckpointSettings(load="x", save=tmp_path)
    assert settings(checkpoint=saving).log_dir == tmp_path / "logs"
    own = LogSettings(log_dir=tmp_path / "own")
    assert settings(checkpoint=saving, log=own).log_dir == tmp_path / "own"


DENSE = ModelConfig(
    family="test", num_layers=2, hidden_size=8, ffn_hidden_size=16, num_attention_heads=4,
    num_query_groups=2, head_dim=2, vocab_size=11, max_position_embeddings=32, norm_epsilon=1e-6,
    activation="silu", tie_word_embeddings=True, rope=RopeConfig(theta=1e4),
)  # fmt: skip
SPARSE = dataclasses.replace(DENSE, experts=ExpertsConfig(
    num_experts=4, top_k=2, ffn_hidden_size=8, renormalized=True, layers=(0, 1)
))  # fmt: skip
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


@pytest.mark.parametrize(("model", "parallel", "train", "message"), [
    (SPARSE, {"tensor_model_parallel_size": 2}, {}, "needs --sequence-parallel in training"),
    (DENSE, {}, {"moe_aux_loss_coeff": 0.01}, "--moe-aux-loss-coeff 0.01: .* has no experts"),
    (SPARSE, {"pipeline_model_parallel_size": 2}, FULL | {"moe_aux_loss_coeff": 0.01},
     "full and several pipeline stages"),
])  # fmt: skip
def test_what_experts_need_in_training(model, parallel, train, message):
    made = settings(
        parallel=ParallelConfig(**parallel),
        train=config.TrainConfig(seq_length=32, train_iters=1, **train),
    )
    with pytest.raises(ConfigError, match=message):
        made.check_model(model)


def test_experts_that_can_be_trained():
    two = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    balanced = config.TrainConfig(seq_length=32, train_iters=1, moe_aux_loss_coeff=0.01, **FULL)
    settings(parallel=ParallelConfig(**two), train=balanced).check_model(SPARSE)
    settings(parallel=ParallelConfig(tensor_model_parallel_size=2)).check_model(DENSE)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (
            {"control": ControlSettings(early_stop_patience=2)},
            "--early-stop-patience has",
        ),
        ({"checkpoint": CheckpointSettings(load="x", save="y", save_best=True)}, "--save-best has"),
        ({"control": ControlSettings(on_non_finite="rollback")}, "give --save"),
        ({"log": LogSettings(profile=True)}, "--profile writes to --log-dir"),
    ],
)
def test_what_would_have_no_effect_is_refused(kinds, words):
    with pytest.raises(ConfigError, match=words):
        settings(**kinds)


def test_uniform_recomputation_needs_whole_units():
    def check(number, method="uniform", **parallel):
        train = {"recompute_granularity": "full", "recompute_method": method,
                 "recompute_num_layers": number}  # fmt: skip
        made = config.TrainConfig(seq_length=32, train_iters=1, **train)
        settings(parallel=ParallelConfig(**parallel), train=made).check_model(DENSE)

    layers = DENSE.num_layers
    check(layers)
    check(layers + 1, method="block")  # all of them
    with pytest.raises(ConfigError, match=f"--recompute-num-layers {layers + 1} does not divide"):
        check(layers + 1)
    with pytest.raises(ConfigError, match="a pipeline stage"):
        check(layers, pipeline_model_parallel_size=2)
