"""Owns the settings of the server; knows neither HTTP nor models."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError

TOKEN_VARIABLE = "MINDSPEED_LLM_TOKEN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where to listen, who may ask, and how much"""

    host: str = setting("127.0.0.1", help="address to listen at; any but this machine's own "
                        "needs a token")  # fmt: skip
    port: int = setting(8000, help="port; 0 takes a free one")
    token_file: Path | None = setting(
        None, help=f"file with the token callers have to send; default: env {TOKEN_VARIABLE}"
    )
    allowed_host: tuple[str, ...] = setting(
        (), help="other names under which the server may be called", metavar="NAME"
    )
    served_model_name: str | None = setting(
        None, help="name of the model; default: that of the directory of --load"
    )
    temperature: float = setting(1.0, help="where a request has none; 0 is greedy")
    max_new_tokens: int = setting(256, help="longest reply of a chat that does not say")
    max_body_bytes: int = setting(4 * 2**20, help="largest request")
    max_running: int = setting(32, help="replies made at the same time")
    max_queue: int = setting(128, help="replies made or waiting; one more is answered with 429")
    kv_tokens: int | None = setting(
        None, help="most tokens in memory, of running and earlier conversations; default: four "
        "times the longest conversation"
    )  # fmt: skip
    prefill_chunk: int = setting(
        256, help="most tokens of new prompts in a step, so that running replies go on"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port is {self.port}; expected 0 to 65535")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature is {self.temperature}; expected 0 or more")
        for name in ("max_new_tokens", "max_body_bytes", "max_running", "max_queue",
                     "prefill_chunk"):  # fmt: skip
            value = getattr(self, name)
            if value < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {value}; expected 1 or more")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def token(self, variable: str | None) -> str | None:
        """The token, from the file or else from the environment's `variable`.

        Raises:
            ConfigError: none where one is needed, or one that is too short.
        """
        text, where = variable, f"env {TOKEN_VARIABLE}"
        if self.token_file is not None:
            where = f"--token-file {self.token_file}"
            try:
                text = self.token_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as err:
                raise ConfigError(f"{where}: cannot be read: {err}") from err
        token = (text or "").strip()
        if not token and (self.token_file is not None or not self.is_local):
            reason = (
                "it is empty" if self.token_file else f"--host {self.host} is reached by others"
            )
            raise ConfigError(
                f"a token is needed, {reason}: write one to a file for --token-file, or set "
                f"{TOKEN_VARIABLE} (python3 -c 'import secrets; print(secrets.token_urlsafe())')"
            )
        if token and (len(token) < 16 or not token.isascii() or not token.isprintable()):
            raise ConfigError(f"{where}: the token has {len(token)} characters; expected at least "
                              "16, plain ASCII")  # fmt: skip
        return token or None

    def budget(self, context: int) -> int:
        """Most positions in memory for conversations of at most `context` tokens.

        Raises:
            ConfigError: one conversation would not fit.
        """
        if self.kv_tokens is None:
            return 4 * context
        if self.kv_tokens < context:
            raise ConfigError(f"--kv-tokens is {self.kv_tokens}; expected at least the longest "
                              f"conversation, {context} (--seq-length lowers it)")  # fmt: skip
        return self.kv_tokens
