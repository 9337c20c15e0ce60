"""Owns the settings of replies as a user may change them while talking; knows no conversation.

Names are those of the flags, with `-` or `_`; values are checked by the settings themselves.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.sampling import GREEDY, Sampling

OVERFLOWS = ("drop-turns", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manner:
    """How replies are made and what is sent; `/set` changes it.

    Attributes:
        sampling: of every reply; the n-th of a conversation adds n - 1 to its seed.
        max_new_tokens: longest reply.
        history_turns: how many earlier turns the model sees.
        overflow: what happens when the conversation is longer than the context.
        stop: texts that end a reply.
        stats: whether counts and speed are told after each reply.
    """

    sampling: Sampling = GREEDY
    max_new_tokens: int = 256
    history_turns: int = 3
    overflow: Literal["drop-turns", "error"] = "drop-turns"
    stop: tuple[str, ...] = ()
    stats: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}; expected 1 or more")
        if self.history_turns < 0:
            raise ConfigError(f"--history-turns is {self.history_turns}; expected 0 or more")
        if self.overflow not in OVERFLOWS:
            raise ConfigError(f"--overflow is {self.overflow!r}; expected {' or '.join(OVERFLOWS)}")
        if not all(self.stop):
            raise ConfigError("--stop has an empty text, which stands everywhere; leave it out")

    def rows(self) -> dict[str, Any]:
        """Every setting by its name."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.asdict(own.pop("sampling")) | own

    def changed(self, name: str, text: str) -> Manner:
        """These settings with one of them as the user wrote it.

        Raises:
            ConfigError: no such setting, or not a value of it.
        """
        name = name.strip().removeprefix("--").replace("-", "_")
        now = self.rows()
        if name not in now:
            raise ConfigError(f"no setting {name!r}; there are {', '.join(now)}")
        reader, expected = _READERS[name]
        try:
            value = reader(text.strip())
        except ValueError:
            raise ConfigError(f"{name} is {text.strip()!r}; expected {expected}") from None
        return Manner.of(now | {name: value})

    @classmethod
    def of(cls, rows: dict[str, Any]) -> Manner:
        """Settings from `rows()`.

        Raises:
            ConfigError: a value that is none.
        """
        rows = dict(rows)
        names = [field.name for field in dataclasses.fields(Sampling)]
        sampling = Sampling(**{name: rows.pop(name) for name in names})
        return cls(sampling=sampling, **rows | {"stop": tuple(rows["stop"])})


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off", "true", "false"):
        raise ValueError
    return text.lower() in ("on", "true")


def _texts(text: str) -> tuple[str, ...]:
    """One text as it stands, a JSON string or list for what cannot be typed; empty for none."""
    if not text:
        return ()
    if text[0] not in '"[':
        return (text,)
    value = json.loads(text)
    many = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in many):
        raise ValueError
    return tuple(many)


def _maybe(text: str) -> int | None:
    return None if text.lower() in ("", "none", "off") else int(text)


_READERS: dict[str, tuple[Any, str]] = {
    "temperature": (float, "a number"),
    "top_k": (int, "a whole number"),
    "top_p": (float, "a number"),
    "min_p": (float, "a number"),
    "repetition_penalty": (float, "a number"),
    "seed": (int, "a whole number"),
    "logprobs": (_maybe, "a whole number or none"),
    "max_new_tokens": (int, "a whole number"),
    "history_turns": (int, "a whole number"),
    "overflow": (str, " or ".join(OVERFLOWS)),
    "stop": (_texts, "a text, or a JSON list of texts"),
    "stats": (_switch, "on or off"),
}
