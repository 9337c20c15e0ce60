"""Settings of checkpoints, records and processes refuse what would have no effect."""

import pytest

from mindspeed_llm.config import run as config
from mindspeed_llm.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("CheckpointSettings", {"load": "x", "save_hf": "y"}, "--save-hf y .* give --save"),
        ("CheckpointSettings", {"load": "x", "verify": False}, "--no-verify has no effect"),
        ("CheckpointSettings", {"load": "x", "save_interval": 2}, "without --save"),
        ("CheckpointSettings", {"load": "x", "keep_last": 2}, "--keep-last has no effect without"),
        ("CheckpointSettings", {"load": "x", "save_best": True}, "--save-best has no effect"),
        ("CheckpointSettings", {"load": "x", "save": "y", "keep_last": 0}, "--keep-last is 0"),
        ("CheckpointSettings", {"load": "x", "save": "y", "save_interval": 3,
         "save_retain_interval": 4}, "4 is not a multiple of --save-interval 3"),
        ("CheckpointSettings", {"load": "x", "save": "y", "save_retain_interval": 4},
         "no effect without --save-interval"),
        ("LogSettings", {"profile_step_start": 3}, "--profile-step-start has no effect"),
        ("LogSettings", {"profile": True, "profile_step_end": 10}, "not above"),
        ("ControlSettings", {"heartbeat_timeout_seconds": 1.0}, "5 or more"),
        ("ControlSettings", {"exit_duration_in_mins": 0.0}, "--exit-duration-in-mins is 0.0"),
        ("ControlSettings", {"exit_interval": 0}, "--exit-interval is 0"),
        ("LogSettings", {"log_interval": 0}, "--log-interval is 0"),
        ("RuntimeSettings", {"distributed_timeout_minutes": 0.0}, "timeout-minutes is 0.0"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_flag(kind, fields, words):
    with pytest.raises(ConfigError, match=words):
        getattr(config, kind)(**fields)


def test_backend_must_be_the_devices_own():
    asked = config.RuntimeSettings(distributed_backend="nccl")
    asked.check_device("cuda", "nccl")
    asked.check_device("npu", "hccl")  # what launchers for transfer_to_npu say
    config.RuntimeSettings().check_device("cpu", "gloo")
    with pytest.raises(ConfigError, match="nccl does not fit the device cpu, .* gloo"):
        asked.check_device("cpu", "gloo")


def test_fused_kernels_are_required_of_accelerators_only():
    asked = config.RuntimeSettings(require_fused=True)
    asked.check_device("npu", "hccl")
    with pytest.raises(ConfigError, match="--require-fused has no effect on a CPU"):
        asked.check_device("cpu", "gloo")
