"""Owns the meaning of OpenAI's requests: which fields there are, what they may be, what is asked of
the engine. It knows no web framework, no model and no thread.

A field that changes what is said is honoured or refused, never ignored.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindspeed_llm.data.messages import Conversation, Message, RowError
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.sampling import MOST_LOGPROBS, Sampling

MOST_CHOICES = 16
MOST_STOPS = 4 * 4
MOST_PROMPTS = 256


class ApiError(Exception):
    """An answer that is an error: HTTP status, message, and the field it is about."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500
                         else "invalid_request_error")  # fmt: skip
        return {"error": {"message": str(self), "type": kind, "param": self.param,
                          "code": self.code}}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """What counts where a request says nothing.

    Attributes:
        model: name of the model, the only one there is.
        temperature: of chats and completions.
        max_new_tokens: of a chat's reply; a completion's is OpenAI's 16.
    """

    model: str
    temperature: float = 1.0
    max_new_tokens: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What both kinds of requests have.

    Attributes:
        sampling: of the first choice; the n-th adds n - 1 to its seed.
        limit: most tokens of a choice.
        stop: texts that end it.
        choices: how many are made of each prompt.
        stream: as events, while they are made.
        usage: counts as a last event.
    """

    sampling: Sampling
    limit: int
    stop: tuple[str, ...]
    choices: int
    stream: bool
    usage: bool

    def of_choice(self, number: int) -> Sampling:
        """Sampling of the choice at place `number`."""
        seed = (self.sampling.seed + number) % 2**63
        return dataclasses.replace(self.sampling, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatWish(Wish):
    """A chat completion: the next answer of a conversation."""

    conversation: Conversation


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextWish(Wish):
    """A completion of texts or of lists of ids; `echo` gives the prompts back as well."""

    prompts: Sequence[str | list[int]]
    echo: bool


def _refuse(name: str, value: Any, expected: str) -> ApiError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ApiError(400, f"{name} is {shown}; expected {expected}", param=name)


def _number(least: float, most: float) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise _refuse(name, value, f"a number from {least:g} to {most:g}")
        return float(value)

    return read


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _refuse(name, value, f"a whole number from {least} to {most}")
        return value

    return read


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "true or false")
    return value


def _stops(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MOST_STOPS:
        raise _refuse(name, value, f"a text or at most {MOST_STOPS} texts")
    if not all(isinstance(text, str) and text for text in texts):
        raise _refuse(name, value, "texts that are not empty")
    return tuple(texts)


def _usage(name: str, value: Any) -> bool:
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise _refuse(name, value, '{"include_usage": true or false}')
    return _switch(f"{name}.include_usage", value.get("include_usage", False))


_LARGE = 2**31
_BOTH: dict[str, Callable[[str, Any], Any]] = {
    "temperature": _number(0, 100),
    "top_p": _number(1e-9, 1),
    "top_k": _whole(0, _LARGE),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(1e-3, 1e3),
    "seed": _whole(0, 2**63 - 1),
    "stop": _stops,
    "n": _whole(1, MOST_CHOICES),
    "stream": _switch,
    "stream_options": _usage,
    "max_tokens": _whole(1, _LARGE),
}
_CHAT = _BOTH | {
    "max_completion_tokens": _whole(1, _LARGE),
    "logprobs": _switch,
    "top_logprobs": _whole(0, MOST_LOGPROBS),
}
_TEXT = _BOTH | {
    "echo": _switch,
    "logprobs": _whole(0, MOST_LOGPROBS),
    "best_of": _whole(1, MOST_CHOICES),
}
# Fields whose work is not done here, with the values that ask for none of it.
_IDLE: dict[str, Sequence[Any]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),  # of tools, and there are none
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
    "top_k": (-1,),
}
# Said of the caller, not of the reply.
_CALLER = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


def _read(
    body: Any, readers: Mapping[str, Callable[[str, Any], Any]], own: Sequence[str], model: str
) -> dict[str, Any]:
    """Values of the fields that are given and not null."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object")
    if body.get("model") not in (model, None):
        raise ApiError(404, f"there is no model {body['model']!r} here; there is {model!r}",
                       param="model", code="model_not_found")  # fmt: skip
    found: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in _CALLER or name in own or name == "model":
            continue
        if any(value == idle and type(value) is not bool or value is idle
               for idle in _IDLE.get(name, ())):  # fmt: skip
            continue
        if name in readers:
            found[name] = readers[name](name, value)
        elif name in _IDLE:
            raise ApiError(400, f"{name} cannot be honoured here; leave it out", param=name,
                           code="unsupported_parameter")  # fmt: skip
        else:
            raise ApiError(400, f"unknown field {name!r}", param=name,
                           code="unknown_parameter")  # fmt: skip
    return found


def _wish(found: Mapping[str, Any], defaults: Defaults, limit: int, logprobs: int | None) -> dict:
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    try:
        sampling = Sampling(
            temperature=found.get("temperature", defaults.temperature),
            seed=found.get("seed", secrets.randbelow(2**31)), logprobs=logprobs,
            **{name: found[name] for name in names if name in found},
        )  # fmt: skip
    except ConfigError as err:
        raise ApiError(400, str(err).removeprefix("--")) from err
    if "stream_options" in found and not found.get("stream", False):
        raise ApiError(400, "stream_options needs stream", param="stream_options")
    return {
        "sampling": sampling, "limit": limit, "stop": found.get("stop", ()),
        "choices": found.get("n", 1), "stream": found.get("stream", False),
        "usage": found.get("stream_options", False),
    }  # fmt: skip


def chat_wish(body: Any, defaults: Defaults) -> ChatWish:
    """What a body of `/v1/chat/completions` asks for.

    Raises:
        ApiError: 400, or 404 for another model.
    """
    found = _read(body, _CHAT, ("messages",), defaults.model)
    limits = {found[name] for name in ("max_tokens", "max_completion_tokens") if name in found}
    if len(limits) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens differ", param="max_tokens")
    if "top_logprobs" in found and not found.get("logprobs", False):
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
    logprobs = found.get("top_logprobs", 0) if found.get("logprobs", False) else None
    wish = _wish(found, defaults, limits.pop() if limits else defaults.max_new_tokens, logprobs)
    return ChatWish(conversation=_conversation(body.get("messages")), **wish)


def text_wish(body: Any, defaults: Defaults) -> TextWish:
    """What a body of `/v1/completions` asks for.

    Raises:
        ApiError: 400, or 404 for another model.
    """
    found = _read(body, _TEXT, ("prompt",), defaults.model)
    if found.get("best_of", found.get("n", 1)) != found.get("n", 1):
        raise ApiError(400, "best_of cannot be honoured here; leave it out", param="best_of")
    if found.get("echo", False) and found.get("stream", False):
        raise ApiError(400, "echo cannot be streamed; drop one of them", param="echo")
    wish = _wish(found, defaults, found.get("max_tokens", 16), found.get("logprobs"))
    return TextWish(
        prompts=_prompts(body.get("prompt")), echo=found.get("echo", False), **wish
    )  # fmt: skip


def _prompts(value: Any) -> Sequence[str | list[int]]:
    def are_ids(one: Any) -> bool:
        return isinstance(one, list) and bool(one) and all(type(x) is int and x >= 0 for x in one)

    many = [value] if isinstance(value, str) or are_ids(value) else value
    fits = isinstance(many, list) and many and all(
        (isinstance(one, str) and one) or are_ids(one) for one in many
    )  # fmt: skip
    if not fits:
        raise _refuse("prompt", value, "a text, a list of ids, or a list of those, none empty")
    if len(many) > MOST_PROMPTS:
        raise ApiError(400, f"{len(many)} prompts; at most {MOST_PROMPTS}", param="prompt")
    return many


def _conversation(value: Any) -> Conversation:
    if not isinstance(value, list) or not value:
        raise _refuse("messages", value, "a list of messages")
    system: str | None = None
    messages: list[Message] = []
    for at, item in enumerate(value):
        where = f"messages[{at}]"
        role, text = _message(item, where)
        if role in ("system", "developer"):
            if at > 0:
                raise ApiError(400, f"{where}: a system message can only be the first", param=where)
            system = text
        else:
            messages.append(Message(role, text))
    conversation = Conversation(tuple(messages), system)
    try:
        conversation.check_turns()
    except RowError as err:
        raise ApiError(400, f"{err.reason}; messages alternate user, assistant, user, ... after "
                       "the system message", param="messages") from err  # fmt: skip
    if not conversation.is_open:
        raise ApiError(400, "the last message is not the user's", param="messages")
    return conversation


def _message(item: Any, where: str) -> tuple[Any, str]:
    if not isinstance(item, dict):
        raise _refuse(where, item, "an object with role and content")
    role = item.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise _refuse(f"{where}.role", role, "system, developer, user or assistant")
    for name, given in item.items():
        # Clients send back the answers they were given, with their empty fields.
        if name not in ("role", "content") and given not in (None, [], {}):
            raise ApiError(400, f"{where}.{name} cannot be honoured here; leave it out",
                           param=f"{where}.{name}")  # fmt: skip
    content = item.get("content")
    if isinstance(content, list):
        texts = [
            part["text"]
            for part in content
            if isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text"
            and isinstance(part["text"], str)
        ]  # fmt: skip
        if len(texts) < len(content):
            raise ApiError(400, f"{where}.content has a part that is no text; only texts are read "
                           "here", param=f"{where}.content")  # fmt: skip
        content = "".join(texts)
    if not isinstance(content, str):
        raise _refuse(f"{where}.content", content, "a text")
    return role, content
