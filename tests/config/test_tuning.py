"""Which parameters are trained, from flags alone."""

import pytest

from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.tuning import TARGETS, LoraConfig, TuningSettings
from mindspeed_llm.errors import ConfigError

NAMES = [
    "embedding.word_embeddings.weight",
    *(f"decoder.layers.{i}.mlp.linear_fc{n}.weight" for i in range(12) for n in (1, 2)),
    "decoder.final_layernorm.weight",
]


def read(*flags):
    (settings,) = parse(flags, TuningSettings, prog="test")
    return settings


def test_no_flag_trains_everything():
    assert read().lora() is None
    assert read().trained(NAMES) == NAMES


def test_lora_has_the_defaults_of_mindspeed_llm_and_targets_in_one_order():
    defaults = LoraConfig(rank=16, alpha=32.0, dropout=0.0, targets=TARGETS)
    for flags in (["--lora-r", "16"], ["--lora-target-modules", *reversed(TARGETS)],
                  ["--lora-dropout", "0"]):  # fmt: skip
        assert read(*flags).lora() == defaults
    assert defaults.scale == 2.0
    some = read("--lora-r", "4", "--lora-alpha", "6", "--lora-dropout", "0.1",
                "--lora-target-modules", "linear_fc2", "linear_qkv").lora()  # fmt: skip
    assert some == LoraConfig(rank=4, alpha=6.0, dropout=0.1, targets=("linear_qkv", "linear_fc2"))
    assert read(*some.flags().split()).lora() == some


def test_a_loaded_adapter_decides_and_flags_may_only_repeat_it():
    loaded = LoraConfig(rank=4, alpha=6.0, dropout=0.1, targets=("linear_qkv",))
    assert read().lora(loaded) == loaded
    assert read("--lora-r", "4", "--lora-target-modules", "linear_qkv").lora(loaded) == loaded
    assert read("--lora-dropout", "0").lora(loaded).dropout == 0
    for flags in (["--lora-r", "8"], ["--lora-alpha", "4"], ["--lora-target-modules", *TARGETS]):
        with pytest.raises(ConfigError, match=rf"--lora-r 4 --lora-alpha 6.*{flags[1]}"):
            read(*flags).lora(loaded)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora-r", "0"], "--lora-r is 0"),
        (["--lora-alpha", "0"], "--lora-alpha is 0"),
        (["--lora-dropout", "1"], "--lora-dropout is 1"),
        (["--lora-target-modules", "q_proj"], "q_proj"),
        (["--lora-target-modules", "linear_qkv", "linear_qkv"], "twice"),
        (["--freeze", "a", "--train-only", "b"], "one of --freeze and --train-only"),
        (["--lora-r", "4", "--freeze", "a"], "--freeze has no effect with LoRA"),
        (["--lora-load", "x", "--train-only", "a"], "--train-only has no effect with LoRA"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        read(*flags)


def test_patterns_choose_names():
    frozen = read("--freeze", "embedding.*", "decoder.layers.[0-9].*").trained(NAMES)
    assert frozen == [n for n in NAMES if ".10." in n or ".11." in n or "final" in n]
    only = read("--train-only", "*norm*", "*.11.mlp.linear_fc2.weight").trained(NAMES)
    assert only == ["decoder.layers.11.mlp.linear_fc2.weight", "decoder.final_layernorm.weight"]


def test_a_pattern_without_a_name_and_nothing_left_are_errors():
    with pytest.raises(ConfigError, match=r"--freeze layers\.0\..*decoder\.layers\.0\.mlp"):
        read("--freeze", "embedding.*", "layers.0.*").trained(NAMES)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        read("--freeze", "*").trained(NAMES)
