"""Settings of the optimizer refuse what contradicts itself."""

import pytest

from mindspeed_llm.config import optimizer as config
from mindspeed_llm.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
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
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_flag(kind, fields, words):
    with pytest.raises(ConfigError, match=words):
        getattr(config, kind)(**fields)
