"""Owns how tools, calls of tools and their results are written as the text of ordinary turns.

One form is known, that of Qwen 2.5 and Qwen 3 (which is Hermes'): tools stand in the system text,
a call is an answer, a result is a user's turn. So a conversation with tools is rendered, truncated
and masked like any other. It knows no file format and no tokenizer's ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from mindspeed_llm.data.chat_template import ChatTemplate, Template
from mindspeed_llm.data.fields import json_list, kind_of, text
from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.tokenizer import Tokenizer

_NAMES = ("chatml", "qwen", "qwen2.5", "qwen3")
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>{tools}\n"
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)  # fmt: skip
WITHOUT_FORM = "tools without a form"
_MALFORMED = "malformed tool call"


@dataclass(frozen=True)
class ToolForm:
    """The form.

    Args:
        default_system: system text of a conversation that has none.
        closing: tag that ends thinking, which a call may not have: Qwen 3 shows it to the answer
            that follows the results, a template of ours does not.
    """

    default_system: str | None = None
    closing: str | None = None

    def system(self, system: str | None, tools: Sequence[Any]) -> str | None:
        """The system text with the tools behind it; without tools as it is."""
        if not tools:
            return system
        listed = "".join("\n" + _json(tool) for tool in tools)
        before = self.default_system if system is None else system
        return ("" if before is None else before + "\n\n") + _TOOLS.replace("{tools}", listed, 1)

    def calls(self, content: str, calls: Sequence[tuple[str, Any]]) -> str:
        """An answer that calls tools, after `content` where there is any."""
        if self.closing and self.closing in content:
            raise RowError("tool_calls", "a call after thinking, which this template would hide "
                           "from the answer to its results", kind=WITHOUT_FORM)  # fmt: skip
        pieces = [content] if content else []
        for name, arguments in calls:
            call = f'{{"name": {_json(name)}, "arguments": {_json(arguments)}}}'
            pieces.append(f"<tool_call>\n{call}\n</tool_call>")
        return "\n".join(pieces)

    def result(self, content: str) -> str:
        """What a tool gave back, as a user's turn."""
        return f"<tool_response>\n{content}\n</tool_response>"


def find_tool_form(template: ChatTemplate, tokenizer: Tokenizer) -> ToolForm | None:
    """The tool form of a template; None where it has none.

    For the tokenizer's own template (`--hf-chat-template`) it is this one exactly where that
    template writes the same text for a conversation with tools as for its form.

    Args:
        template: as `--prompt-type` chose it.
        tokenizer: the one whose template it may be.
    """
    if isinstance(template, Template):
        if template.name not in _NAMES:
            return None
        return ToolForm(template.default_system, template.think[1] if template.think else None)
    user = {"role": "user", "content": "Q"}
    answer = {"role": "assistant", "content": "A"}
    try:
        plain = tokenizer.render_chat([user, answer])
        head = plain.partition("<|im_start|>system\n")[2]
        form = ToolForm(head.partition("<|im_end|>")[0] if head else None)
        tool = {"type": "function", "function": {"name": "f", "parameters": {"x": "\u00e9"}}}
        function = {"name": "f", "arguments": {"x": [1, "\u00e9"]}}
        call = {**answer, "content": "",
                "tool_calls": [{"type": "function", "function": function}]}  # fmt: skip
        result = {"role": "tool", "content": "R"}
        theirs = [user, call, result, result, {**answer, "content": "B"}]
        said = form.calls("", [("f", {"x": [1, "\u00e9"]})])
        given = f"{form.result('R')}\n{form.result('R')}"
        ours = [user, {**answer, "content": said}, {**user, "content": given},
                {**answer, "content": "B"}]  # fmt: skip
        for system in (None, "S"):
            lead = [] if system is None else [{"role": "system", "content": system}]
            whole = [{"role": "system", "content": form.system(system, [tool])}]
            if tokenizer.render_chat(lead + theirs, tools=[tool]) != (
                tokenizer.render_chat(whole + ours)
            ):
                return None
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None  # a template that does not know tools may do anything with them
    return form


def read_tools(value: Any, field: str) -> list[Any]:
    """Tools of a row: a list of objects, or a JSON text of one; null and blank are none."""
    tools = json_list(value, field, "a list of tools", kind="malformed tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RowError(f"{field}[{index}]", f"{kind_of(tool)}, expected an object",
                           kind="malformed tools")  # fmt: skip
        _checked(tool, f"{field}[{index}]")
    return tools


def read_calls(value: Any, field: str) -> list[tuple[str, Any]]:
    """(name, arguments) of each of OpenAI's `tool_calls`, or of ShareGPT's JSON text of calls.

    Arguments are an object, or a JSON text of one.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as err:
            raise RowError(field, f"a text that is not JSON ({err})", kind=_MALFORMED) from None
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError(field, "no call", kind=_MALFORMED)
    return [_call(call, f"{field}[{index}]" if isinstance(value, list) else field)
            for index, call in enumerate(calls)]  # fmt: skip


def _call(call: Any, field: str) -> tuple[str, Any]:
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call, field = call["function"], f"{field}.function"
    if not isinstance(call, Mapping):
        raise RowError(field, f"{kind_of(call)}, expected an object with name and arguments",
                       kind=_MALFORMED)  # fmt: skip
    name = text(call.get("name"), f"{field}.name", "tool name")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as err:
            raise RowError(f"{field}.arguments", f"a text that is not JSON ({err})",
                           kind=_MALFORMED) from None  # fmt: skip
    if not isinstance(arguments, Mapping):
        raise RowError(f"{field}.arguments", f"{kind_of(arguments)}, expected an object",
                       kind=_MALFORMED)  # fmt: skip
    _checked(arguments, f"{field}.arguments")
    return name, arguments


def _checked(value: Any, field: str) -> None:
    """Refuse what JSON cannot say, and text that is no text."""
    try:
        _json(value).encode()
    except (TypeError, ValueError, RecursionError) as err:
        raise RowError(field, f"not JSON ({type(err).__name__})", kind=_MALFORMED) from None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
