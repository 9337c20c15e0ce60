"""Owns how tools, calls of tools and their results are written: what a form of them is, as data,
and the texts that become of a row's with it.

A form is flat where all of it is text of ordinary turns (Qwen's, which is Hermes'); otherwise its
turns have forms and markers of their own, which the template writes. It knows no file format, no
template's rules and no tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mindspeed_llm.data.fields import json_list, kind_of, text
from mindspeed_llm.data.messages import RowError

WITHOUT_FORM = "tools without a form"
_MALFORMED = "malformed tool call"
_ID = re.compile("[A-Za-z0-9]{9}")
_PLACE = re.compile(r"\{(name|quoted|json|arguments|result|id)\}")


class Repeated(NamedTuple):
    """A form for one or several texts, `{content}` each; `between` stands between two of them."""

    each: str = "{content}"
    between: str = ""
    begin: str = ""
    end: str = ""

    def form(self, count: int) -> str:
        """The form for `count` texts."""
        return self.begin + self.between.join([self.each] * count) + self.end


class Call(NamedTuple):
    """A call of a tool; `id` is what the row calls it, or empty."""

    name: str
    arguments: Any
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolForm:
    """A form.

    In `tool`, `call` and `result` stand `{name}`, `{quoted}` (the name as JSON), `{json}` (the
    tool), `{arguments}`, `{result}` and `{id}`; in the other forms `{content}` for those texts.

    Args:
        tools: form of the tools, joined by `between`; empty: the template does not list them.
        place: where they stand: in the system text, in a block before everything, or before the
            first question.
        tool, between: form of one, and what is between two.
        indent: of its JSON, in blanks; None: on one line.
        bare: a tool's JSON is its `function` alone, without the keys in `hidden`.
        system: form of the system block where there are tools, if it is another one.
        call, calls: form of a call, and of an answer that calls.
        several: whether an answer may hold several calls.
        beside: what stands between an answer's text and its calls; None: it can have no text.
        call_end: end-of-turn marker of such an answer, where it is another one.
        result, results: form of a result, and of the turn of all results.
        quoted: results that are written as JSON texts: all, or those that are no JSON.
        header: form of what stands before the answer to results, where it is another one.
        markers: special tokens that occur above.
        flat: all is text of ordinary turns.
        default_system: system text of a conversation that has none (flat only).
        closing: tag that ends thinking, which a call may not have: it is shown to the answer that
            follows the results, and a template of ours does not.
    """

    tools: str = ""
    place: Literal["system", "block", "question"] = "system"
    tool: str = "{json}"
    between: str = ""
    indent: int | None = None
    bare: bool = False
    hidden: tuple[str, ...] = ()
    system: str = ""
    call: str
    calls: Repeated
    several: bool = True
    beside: str | None = None
    call_end: str = ""
    result: str = "{result}"
    results: Repeated
    quoted: Literal["none", "all", "texts"] = "none"
    header: str | None = None
    markers: tuple[str, ...] = ()
    flat: bool = False
    default_system: str | None = None
    closing: str | None = None

    def listed(self, tools: Sequence[Any], field: str) -> str:
        """Text of the tools of a row, to stand in `tools`."""
        if not self.tools:
            raise RowError(field, "this template does not list tools; put them into the system "
                           "text", kind=WITHOUT_FORM)  # fmt: skip
        return self.between.join(
            self._tool(tool, f"{field}[{index}]") for index, tool in enumerate(tools)
        )

    def flat_system(self, system: str | None, listed: str) -> str:
        """The system text with the tools behind it."""
        before = self.default_system if system is None else system
        said = _fill(self.tools, (listed,))
        return ("" if before is None else before + "\n\n") + said

    def _tool(self, tool: Mapping[str, Any], field: str) -> str:
        function = tool.get("function")
        function = function if isinstance(function, Mapping) else tool
        name = text(function.get("name"), f"{field}.name", "tool name") if self.bare else ""
        shown = {k: v for k, v in function.items() if k not in self.hidden} if self.bare else tool
        return _put(self.tool, name=name, json=_json(shown, self.indent))


class ToolTurns:
    """Writes the calls and results of one conversation, in their order.

    Results belong to the calls before them, by id where the row has ids, else by order. Where a
    form writes ids, those of nine letters or digits stay and others become running numbers, because
    Mistral's template refuses any other.
    """

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._calls = 0
        self._open: list[tuple[str, str]] = []  # id in the row, id as written

    def calls(self, content: str, calls: Sequence[Call], field: str) -> tuple[str, tuple[str, ...]]:
        """Content and parts (`Message.tool`) of an answer that calls."""
        form = self._form
        if form.closing and form.closing in content:
            raise RowError("tool_calls", "a call after thinking, which this template would hide "
                           "from the answer to its results", kind=WITHOUT_FORM)  # fmt: skip
        if content and not form.flat and (form.beside is None or self._open):
            raise RowError(field, "text beside a call, which this template cannot write",
                           kind=WITHOUT_FORM)  # fmt: skip
        texts = tuple(self._call(call) for call in calls)
        if not form.several and len(self._open) > 1:
            raise RowError(field, "several calls at once, of which this template writes one",
                           kind=WITHOUT_FORM)  # fmt: skip
        if not form.flat:
            return content + form.beside if content and form.beside else content, texts
        said = _fill(form.calls.form(len(texts)), texts)
        return f"{content}{form.beside}{said}" if content else said, ()

    def result(self, content: str, call: Any, field: str) -> tuple[str, tuple[str, ...]]:
        """Content and parts of a turn with what the tool gave back; `call` is the call's id."""
        form = self._form
        if form.flat:
            return _fill(form.results.form(1), (content,)), ()
        if not self._open:
            raise RowError(field, "a result without a call before it", kind="role order")
        ids = [given for given, _ in self._open]
        _, written = self._open.pop(ids.index(call) if call and call in ids else 0)
        if form.quoted == "all" or (form.quoted == "texts" and not _is_json(content)):
            content = _json(content)
        return "", (_put(form.result, result=content, id=written),)

    def other(self, field: str) -> None:
        """A turn that neither calls nor gives back."""
        if self._open and not self._form.flat:
            raise RowError(field, "a call before it has no result", kind="role order")

    def _call(self, call: Call) -> str:
        written = call.id if _ID.fullmatch(call.id) else f"{self._calls:09}"
        self._calls += 1
        self._open.append((call.id, written))
        return _put(self._form.call, name=call.name, quoted=_json(call.name), id=written,
                    arguments=_json(call.arguments))  # fmt: skip


def read_tools(value: Any, field: str) -> list[Any]:
    """Tools of a row: a list of objects, or a JSON text of one; null and blank are none."""
    tools = json_list(value, field, "a list of tools", kind="malformed tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RowError(f"{field}[{index}]", f"{kind_of(tool)}, expected an object",
                           kind="malformed tools")  # fmt: skip
        _checked(tool, f"{field}[{index}]")
    return tools


def read_calls(value: Any, field: str) -> list[Call]:
    """Each of OpenAI's `tool_calls`, or of ShareGPT's JSON text of calls.

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


def _call(call: Any, field: str) -> Call:
    given = call.get("id") if isinstance(call, Mapping) else None
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
    return Call(name, arguments, given if isinstance(given, str) else "")


def _checked(value: Any, field: str) -> None:
    """Refuse what JSON cannot say, and text that is no text."""
    try:
        _json(value).encode()
    except (TypeError, ValueError, RecursionError) as err:
        raise RowError(field, f"not JSON ({type(err).__name__})", kind=_MALFORMED) from None


def _is_json(said: str) -> bool:
    try:
        json.loads(said)
    except (ValueError, RecursionError):
        return False
    return True


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _put(form: str, **texts: str) -> str:
    """The form with each text in its place; what is put in is not looked at again."""
    return _PLACE.sub(lambda place: texts[place[1]], form)


def _fill(form: str, texts: Sequence[str]) -> str:
    pieces = form.split("{content}")
    return pieces[0] + "".join(t + p for t, p in zip(texts, pieces[1:], strict=True))
