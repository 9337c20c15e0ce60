"""config.plan: sizes with units, and what is refused."""

from pathlib import Path

import pytest

from mindspeed_llm.config.plan import PlanConfig
from mindspeed_llm.errors import ConfigError

ASKED = {"model": Path("x"), "devices": 8, "memory": "64GiB", "seq_length": 4096}


@pytest.mark.parametrize(("text", "wanted"), [
    ("64GiB", 64 * 2**30), ("1.5 GiB", 3 * 2**29), ("80GB", 80 * 10**9), ("512MiB", 2**29),
])  # fmt: skip
def test_sizes(text, wanted):
    assert PlanConfig(**(ASKED | {"memory": text})).bytes == wanted


@pytest.mark.parametrize(("changes", "words"), [
    ({"memory": "64"}, "--memory is '64'; expected a number and one of GiB"),
    ({"memory": "-1GiB"}, "--memory is '-1GiB'"),
    ({"memory": "0GiB"}, "--memory is '0GiB'"),
    ({"memory": "64gb"}, "--memory is '64gb'"),
    ({"devices": 0}, "--devices is 0"),
    ({"micro_batch_size": 0}, "--micro-batch-size is 0"),
    ({"devices_per_node": 0}, "--devices-per-node is 0"),
    ({"seq_length": 1}, "--seq-length is 1"),
    ({"headroom": 1.0}, "--headroom is 1.0"),
    ({"headroom": float("nan")}, "--headroom is nan"),
])  # fmt: skip
def test_what_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        PlanConfig(**(ASKED | changes))
