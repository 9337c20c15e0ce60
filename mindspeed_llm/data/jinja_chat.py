"""Owns running a chat template written in jinja, in a sandbox, with what transformers gives to
templates: the same text without the seconds that importing transformers takes.

Reference: transformers' documentation "Writing a chat template" (filters, functions, the
`generation` tag). It knows no tokenizer.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.utils import Namespace

_OPEN, _CLOSE = "\ue0f2", "\ue0f3"  # private use: they mark the text of `generation` blocks
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], *,
                add_generation_prompt: bool = False, tools: Sequence[Any] | None = None,
                named: Mapping[str, str] | None = None) -> str:  # fmt: skip
    """Text of a conversation.

    Args:
        template: source of the template.
        messages: role, content and what else the template knows.
        add_generation_prompt: end with the header of an answer.
        tools: descriptions of tools.
        named: special tokens by name (`bos_token`, ...).

    Raises:
        jinja2.TemplateError: the template is none, or refuses the conversation.
    """
    return _compiled(template, False).render(
        messages=list(messages), tools=tools, documents=None,
        add_generation_prompt=add_generation_prompt, **(named or {}),
    )  # fmt: skip


def render_blocks(
    template: str, messages: Sequence[Mapping[str, Any]], named: Mapping[str, str] | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Text of a conversation, and where in it the `{% generation %}` blocks are."""
    rendered = _compiled(template, True).render(
        messages=list(messages), tools=None, documents=None, add_generation_prompt=False,
        **(named or {}),
    )  # fmt: skip
    begun: list[int] = []
    blocks: list[tuple[int, int]] = []
    for number, mark in enumerate(_MARKS.finditer(rendered)):
        if mark[0] == _OPEN:
            begun.append(mark.start() - number)
        else:
            blocks.append((begun.pop(), mark.start() - number))
    return _MARKS.sub("", rendered), blocks


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: the text inside, as it is."""

    tags = {"generation"}
    marks = ("", "")

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return self.marks[0] + caller() + self.marks[1]


class _Marked(_Generation):
    marks = (_OPEN, _CLOSE)


class _Names(Namespace):
    """A namespace whose names say nothing of Python's inside."""

    def __init__(*args: Any, **names: Any) -> None:  # so that `self` may be a name
        self, *given = args
        values = dict(*given, **names)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not store {name!r}")


@functools.lru_cache(maxsize=16)
def _compiled(source: str, marked: bool) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[_Marked if marked else _Generation, jinja2.ext.loopcontrols],
    )  # fmt: skip
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_refuse, strftime_now=_now, namespace=_Names, dict=_new_dict
    )
    return environment.from_string(source)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)  # fmt: skip


def _new_dict(*given: Any, **values: Any) -> dict[Any, Any]:
    # Not the class itself: a template gets no attribute of it.
    return dict(*given, **values)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
