"""What is said of data sets is read as Megatron reads it, or refused."""

from fractions import Fraction

import pytest

from mindspeed_llm.config import train_data as config
from mindspeed_llm.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
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
