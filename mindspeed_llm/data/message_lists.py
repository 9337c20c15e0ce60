"""Owns rows that hold a list of messages, as ShareGPT and OpenAI write them.

It knows no file format and no template. An unusable row raises RowError; none is invented.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.data.fields import json_list, kind_of, text, text_or_empty
from mindspeed_llm.data.messages import Conversation, Message, Role, RowError
from mindspeed_llm.data.tool_form import WITHOUT_FORM, ToolForm, ToolTurns, read_calls, read_tools
from mindspeed_llm.errors import ConfigError

_SHAREGPT = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_TRAINED_KEYS = ("loss", "weight")


@dataclass(frozen=True)
class MessageListSource:
    """A column with a list of messages; names of keys and roles come from `tags`.

    The system text is the first message's where it has the system role (an empty one stays empty),
    else the system column's, else the template's default. A message with `loss` or `weight` (0, 1,
    true or false) says itself whether it is trained.

    Calls of tools, their results and the tools themselves are written by `tool_form`; a result is a
    target only where it says so, several in a row are one turn. Without a form such rows are
    refused.

    Args:
        messages: column of the list, or of a JSON text of one.
        system: column of the system text; None: not read.
        tags: names in use, a value for each key of the table above.
        tools: column of the tools, which rows may lack; None: not read.
        mapped: columns that the user named himself, which must therefore exist.
        tool_form: how the template writes tools; a text: why it cannot.
    """

    messages: str
    system: str | None
    tags: Mapping[str, str]
    tools: str | None = None
    mapped: frozenset[str] = frozenset()
    tool_form: ToolForm | str = "no form for tools"

    @classmethod
    def sharegpt(cls, map_keys: Mapping[str, Any] | None) -> MessageListSource:
        """ShareGPT's names, overridden by `map_keys`."""
        return cls._named("SharegptStyleInstructionHandler", "conversations", _SHAREGPT, map_keys)

    @classmethod
    def openai(cls, map_keys: Mapping[str, Any] | None) -> MessageListSource:
        """OpenAI's names, overridden by `map_keys`."""
        return cls._named("OpenAIInstructionHandler", "messages", _OPENAI, map_keys)

    @classmethod
    def _named(cls, handler: str, column: str, defaults: Mapping[str, str],
               map_keys: Mapping[str, Any] | None) -> MessageListSource:  # fmt: skip
        given = dict(map_keys or {})
        tags = given.pop("tags", None) or {}
        columns = {"messages": column, "system": None, "tools": "tools", **given}
        for name, value in columns.items():
            if name not in ("messages", "system", "tools"):
                raise ConfigError(f"--map-keys: no attribute {name!r}; {handler} has messages, "
                                  "system, tools, tags")  # fmt: skip
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"--map-keys: {name!r}: {value!r}; expected a column's name")
        if not columns["messages"]:
            raise ConfigError("--map-keys: 'messages' needs a column")
        if not isinstance(tags, Mapping):
            raise ConfigError(f"--map-keys: 'tags': {tags!r}; expected an object")
        for name, value in tags.items():
            if name not in defaults:
                raise ConfigError(f"--map-keys: no tag {name!r}; there are {', '.join(defaults)}")
            if not isinstance(value, str) or not value:
                raise ConfigError(f"--map-keys: tag {name!r}: {value!r}; expected a name")
        return cls(columns["messages"], columns["system"] or None, {**defaults, **tags},
                   columns["tools"] or None, frozenset(c for c in given.values() if c))  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Source.columns`."""
        named = (self.messages, self.system, self.tools)
        return tuple(dict.fromkeys(c for c in named if c is not None))

    @property
    def required(self) -> tuple[str, ...]:
        """See `Source.required`; the default column of tools may be absent."""
        return tuple(c for c in self.columns if c != self.tools or c in self.mapped)

    def unread_hint(self, present: frozenset[str]) -> str | None:
        """See `Source.unread_hint`."""
        if self.system is not None or "system" not in present or self.messages == "system":
            return None
        return ("column 'system' is not read; to use it: --map-keys "
                "'{\"system\": \"system\"}'")  # fmt: skip

    def read(self, row: Mapping[str, Any]) -> Conversation:
        """See `Source.read`."""
        items = json_list(row.get(self.messages), self.messages, "a list of messages",
                          kind="malformed messages")  # fmt: skip
        system = text_or_empty(row.get(self.system), self.system) if self.system else ""
        named: str | None = system or None
        messages: list[Message] = []
        written = None if isinstance(self.tool_form, str) else ToolTurns(self.tool_form)
        for index, item in enumerate(items):
            where = f"{self.messages}[{index}]"
            if not isinstance(item, Mapping):
                raise RowError(where, f"{kind_of(item)}, expected an object",
                               kind="malformed messages")  # fmt: skip
            if index == 0 and item.get(self.tags["role_tag"]) == self.tags["system_tag"]:
                if item.get(self.tags["content_tag"]) is not None:
                    named = self._content(item, where)
                continue
            message = self._message(item, where, written)
            both = messages and messages[-1].role == message.role
            if both and ((messages[-1].tool and message.tool) or (
                    self._is_result(item) and self._is_result(items[index - 1]))):  # fmt: skip
                message = _after(messages.pop(), message)
            messages.append(message)
        return self._with_tools(Conversation(tuple(messages), named), row)

    def _with_tools(self, talk: Conversation, row: Mapping[str, Any]) -> Conversation:
        field = str(self.tools)
        tools = read_tools(row.get(self.tools), field) if self.tools else []
        if not tools:
            return talk
        if isinstance(self.tool_form, str):
            raise RowError(field, self.tool_form, kind=WITHOUT_FORM)
        listed = self.tool_form.listed(tools, field)
        if self.tool_form.flat:
            return dataclasses.replace(talk, system=self.tool_form.flat_system(talk.system, listed))
        return dataclasses.replace(talk, tools=listed)

    def _is_result(self, item: Any) -> bool:
        role = item.get(self.tags["role_tag"]) if isinstance(item, Mapping) else None
        return role == self.tags["observation_tag"]

    def _message(self, item: Mapping[str, Any], where: str, written: ToolTurns | None) -> Message:
        role = item.get(self.tags["role_tag"])
        field = f"{where}.{self.tags['role_tag']}"
        calling = role == self.tags["assistant_tag"] and item.get("tool_calls")
        if calling or role in (self.tags["function_tag"], self.tags["observation_tag"]):
            if written is None:
                raise RowError(field, str(self.tool_form), kind=WITHOUT_FORM)
            return self._tool_message(item, where, written)
        if written is not None:
            written.other(where)
        if role == self.tags["user_tag"]:
            question = text(self._content(item, where), where, "user turn")
            return _marked("user", question, item, where)
        if role == self.tags["assistant_tag"]:
            answer = text(self._content(item, where), where, "answer")
            return _marked("assistant", answer, item, where)
        if role == self.tags["system_tag"]:
            raise RowError(field, "a system message that is not the first", kind="role order")
        known = ", ".join(
            repr(self.tags[f"{name}_tag"]) for name in ("user", "assistant", "system")
        )
        raise RowError(field, f"{role!r}, expected {known} (--map-keys tags)", kind="unknown role")

    def _tool_message(self, item: Mapping[str, Any], where: str, written: ToolTurns) -> Message:
        if self._is_result(item):
            content = self._content(item, where)
            content, tool = written.result(content, item.get("tool_call_id"), where)
            return _marked("user", content, {"loss": 0, **item}, where, tool)
        if item.get(self.tags["role_tag"]) == self.tags["function_tag"]:
            field, content = f"{where}.{self.tags['content_tag']}", ""
            calls = read_calls(item.get(self.tags["content_tag"]), field)
        else:
            field, content = f"{where}.tool_calls", self._content(item, where)
            calls = read_calls(item["tool_calls"], field)
        content, tool = written.calls(content, calls, field)
        return _marked("assistant", content, item, where, tool)

    def _content(self, item: Mapping[str, Any], where: str) -> str:
        key = self.tags["content_tag"]
        value = item.get(key)
        if not isinstance(value, list):
            return text_or_empty(value, f"{where}.{key}")
        pieces: list[str] = []
        for index, piece in enumerate(value):
            if not isinstance(piece, Mapping) or piece.get("type") != "text":
                raise RowError(f"{where}.{key}[{index}]", "not a piece of text",
                               kind="not text")  # fmt: skip
            pieces.append(text_or_empty(piece.get("text"), f"{where}.{key}[{index}].text"))
        return "".join(pieces)


def _after(before: Message, after: Message) -> Message:
    """Two turns of results, or of calls, as one, which is a target only where both want it."""
    loss = False if False in (before.loss, after.loss) else before.loss or after.loss
    content = before.content if after.tool else f"{before.content}\n{after.content}"
    return Message(before.role, content, before.train and after.train, loss,
                   before.tool + after.tool)  # fmt: skip


def _marked(role: Role, content: str, item: Mapping[str, Any], where: str,
            tool: tuple[str, ...] = ()) -> Message:  # fmt: skip
    """The turn with what its `loss` or `weight` says; where both do, both have to want it."""
    trained: bool | None = None
    for key in _TRAINED_KEYS:
        value = item.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # true and false are 1 and 0
            raise RowError(f"{where}.{key}", f"{value!r}, expected 0, 1, true or false",
                           kind="malformed messages")  # fmt: skip
        trained = trained is not False and bool(value)
    return Message(role, content, trained is not False, trained, tool)
