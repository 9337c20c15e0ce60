"""Settings of the server: what needs a token, and what is no setting."""

from pathlib import Path

import pytest

from mindspeed_llm.config.serve import ServeSettings
from mindspeed_llm.errors import ConfigError

LONG = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_alone_needs_no_token(host: str) -> None:
    assert ServeSettings(host=host).is_local
    assert ServeSettings(host=host).token(None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "example.org"])
def test_any_other_address_does(host: str, tmp_path: Path) -> None:
    settings = ServeSettings(host=host)
    with pytest.raises(ConfigError, match="a token is needed"):
        settings.token(None)
    assert settings.token(LONG) == LONG
    path = tmp_path / "token"
    path.write_text(f"{LONG}x\n")
    assert ServeSettings(host=host, token_file=path).token(LONG) == f"{LONG}x"


def test_tokens_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        ServeSettings().token("short")
    with pytest.raises(ConfigError, match="cannot be read"):
        ServeSettings(token_file=tmp_path / "none").token(None)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="it is empty"):
        ServeSettings(token_file=tmp_path / "empty").token(LONG)


@pytest.mark.parametrize("change", [
    {"port": 70000}, {"max_queue": 0}, {"max_running": 0}, {"max_body_bytes": 0},
    {"prefill_chunk": 0}, {"max_new_tokens": 0}, {"temperature": -1.0},
])  # fmt: skip
def test_numbers_that_are_none(change: dict) -> None:
    (name,) = change
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        ServeSettings(**change)


def test_memory_holds_at_least_one_conversation() -> None:
    assert ServeSettings().budget(1000) == 4000
    assert ServeSettings(kv_tokens=1000).budget(1000) == 1000
    with pytest.raises(ConfigError, match="--kv-tokens is 999"):
        ServeSettings(kv_tokens=999).budget(1000)
