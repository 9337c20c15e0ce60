"""config.verify: both places must be directories."""

import pytest

from mindspeed_llm.config.verify import VerifyConfig
from mindspeed_llm.errors import ConfigError


def test_both_are_there(tmp_path):
    assert VerifyConfig(load=tmp_path, hf_dir=tmp_path).hf_dir == tmp_path


@pytest.mark.parametrize("flag", ["load", "hf_dir"])
def test_a_place_that_is_not_there(flag, tmp_path):
    places = {"load": tmp_path, "hf_dir": tmp_path} | {flag: tmp_path / "none"}
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} .*none: no such directory"):
        VerifyConfig(**places)
