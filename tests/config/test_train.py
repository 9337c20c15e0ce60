"""Settings refuse what contradicts itself, with the flag, the value and the mend."""

from fractions import Fraction

import pytest

from mindspeed_llm.config import train as config
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import ConfigError


def settings(**kinds):
    made = {
        "train": config.TrainConfig(seq_length=32, train_iters=10),
        "data": config.TrainDataConfig(data_path=("x",)),
        "optimizer": config.OptimizerSettings(lr=1e-3),
        "checkpoint": config.CheckpointSettings(load="x"),
        "log": config.LogSettings(),
        "runtime": config.RuntimeSettings(),
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
        ("CheckpointSettings", {"load": "x", "save_hf": "y"}, "--save-hf y .* give --save"),
        ("CheckpointSettings", {"load": "x", "verify": False}, "--no-verify has no effect"),
        ("OptimizerSettings", {"lr": 0.0}, "--lr is 0.0"),
        ("OptimizerSettings", {"lr": float("nan")}, "--lr is nan"),
        ("OptimizerSettings", {"lr": 1e-5, "min_lr": 1e-4}, "--min-lr 0.0001 is above"),
        ("OptimizerSettings", {"lr": 1e-5, "adam_beta1": 1.0}, "--adam-beta1 is 1.0"),
        ("OptimizerSettings", {"lr": 1e-5, "lr_decay_style": "WSD"}, "--lr-wsd-decay-iters"),
        ("OptimizerSettings", {"lr": 1e-5, "lr_wsd_decay_iters": 3}, "only WSD takes it"),
        ("OptimizerSettings", {"lr": 1e-5, "lr_warmup_fraction": 1.0}, "below 1"),
        ("OptimizerSettings", {"lr": 1e-5, "lr_warmup_fraction": 0.1, "lr_warmup_iters": 2},
         "not both"),
        ("OptimizerSettings", {"lr": 1e-5, "clip_grad": -1.0}, "--clip-grad is -1.0"),
        ("TrainDataConfig", {"data_path": ("0.3", "A", "B", "C")}, "'B' is not a weight above 0"),
        ("TrainDataConfig", {"data_path": ("0.3", "A", "0", "C")}, "'0' is not a weight above 0"),
        ("TrainDataConfig", {"data_path": ("-1", "A", "1", "C")}, "'-1' is not a weight"),
        ("TrainDataConfig", {"data_path": ("A", "B", "A")}, "names A twice"),
        ("TrainDataConfig", {"data_path": ("1", "A", "2", "A")}, "names A twice"),
        ("TrainDataConfig", {"data_path": ("A",), "shuffle": False,
         "full_shuffle_instruction_dataset": True}, "contradicts --no-shuffle"),
        ("TrainDataConfig", {"data_path": ("A",), "padded_samples": True,
         "full_shuffle_instruction_dataset": True}, "the epochs are mixed"),
        ("TrainDataConfig", {"data_path": ("1", "A", "2", "B"), "padded_samples": True},
         "have no common epoch"),
        ("CheckpointSettings", {"load": "x", "save_interval": 2}, "without --save"),
        ("CheckpointSettings", {"load": "x", "load_optim": False}, "--finetune"),
        ("LogSettings", {"log_interval": 0}, "--log-interval is 0"),
        ("RuntimeSettings", {"distributed_timeout_minutes": 0.0}, "timeout-minutes is 0.0"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_flag(kind, fields, words):
    with pytest.raises(ConfigError, match=words):
        getattr(config, kind)(**fields)


@pytest.mark.parametrize(
    ("words", "weights", "prefixes"),
    [
        (["A"], None, ("A",)),
        (["1.0", "A"], (1,), ("A",)),
        (["0.3", "A", "0.7", "B"], (Fraction(3, 10), Fraction(7, 10)), ("A", "B")),
        (["30", "A", "7e1", "B"], (30, 70), ("A", "B")),
        (["A", "B"], None, ("A", "B")),
        (["A", "B", "7"], None, ("A", "B", "7")),
    ],
)
def test_data_paths_are_read_as_megatron_reads_them(words, weights, prefixes):
    data = config.TrainDataConfig(data_path=tuple(words))
    assert data.weights == weights and data.prefixes == prefixes


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
    free = config.TrainDataConfig(data_path=("x",), variable_seq_lengths=True, pad_to_multiple_of=6)
    assert settings(parallel=parallel, data=free).length_multiple == 12
    assert settings(data=free).length_multiple == 6
    with pytest.raises(ConfigError, match="--seq-length 30 is not a multiple"):
        settings(parallel=parallel, train=config.TrainConfig(seq_length=30, train_iters=1))


def test_backend_must_be_the_devices_own():
    asked = config.RuntimeSettings(distributed_backend="nccl")
    asked.check_backend("cuda", "nccl")
    asked.check_backend("npu", "hccl")  # what launchers for transfer_to_npu say
    config.RuntimeSettings().check_backend("cpu", "gloo")
    with pytest.raises(ConfigError, match="nccl does not fit the device cpu, .* gloo"):
        asked.check_backend("cpu", "gloo")


def test_log_directory_follows_save(tmp_path):
    assert settings().log_dir is None
    saving = config.CheckpointSettings(load="x", save=tmp_path)
    assert settings(checkpoint=saving).log_dir == tmp_path / "logs"
    own = config.LogSettings(log_dir=tmp_path / "own")
    assert settings(checkpoint=saving, log=own).log_dir == tmp_path / "own"
