"""Owns which tool form a chat template has together with a tokenizer; knows no row and no file."""

from __future__ import annotations

import dataclasses

import jinja2

from mindspeed_llm.data.chat_template import ChatTemplate, Template
from mindspeed_llm.data.templates import QWEN_TOOLS, TEMPLATES
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.data.tool_form import Call, ToolForm, ToolTurns

_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"x": "\u00e9"}}}
_ARGUMENTS = {"x": [1, "\u00e9"]}


def find_tool_form(template: ChatTemplate, tokenizer: Tokenizer) -> ToolForm | str:
    """The tool form of a template, or a text: why it has none.

    For the tokenizer's own template (`--hf-chat-template`) it is Qwen's exactly where that template
    writes the same text for a conversation with tools as for Qwen's form.

    Args:
        template: as `--prompt-type` chose it.
        tokenizer: the one whose template it may be.
    """
    if not isinstance(template, Template):
        form = _qwens(tokenizer)
        return form or ("the tokenizer's own template does not write tools as Qwen's do; use the "
                        "model's --prompt-type where there is one")  # fmt: skip
    if template.apart:
        return "--template-compat mindspeed writes no tools"
    if template.tools is None:
        able = ", ".join(t.name for t in TEMPLATES.values() if t.tools is not None)
        return f"template {template.name} has no form for tools; those that have: {able}"
    missing = [m for m in template.tools.markers if not tokenizer.has_token(m)]
    if missing:
        return (f"template {template.name} writes tools with {', '.join(missing)}, and this "
                "tokenizer has no such token")  # fmt: skip
    if not template.tools.flat:
        return template.tools
    return dataclasses.replace(template.tools, default_system=template.default_system,
                               closing=template.think[1] if template.think else None)  # fmt: skip


def _qwens(tokenizer: Tokenizer) -> ToolForm | None:
    user = {"role": "user", "content": "Q"}
    answer = {"role": "assistant", "content": "A"}
    try:
        plain = tokenizer.render_chat([user, answer])
        head = plain.partition("<|im_start|>system\n")[2]
        form = dataclasses.replace(
            QWEN_TOOLS, default_system=head.partition("<|im_end|>")[0] if head else None
        )
        function = {"name": "f", "arguments": _ARGUMENTS}
        call = {**answer, "content": "",
                "tool_calls": [{"type": "function", "function": function}]}  # fmt: skip
        result = {"role": "tool", "content": "R"}
        theirs = [user, call, result, result, {**answer, "content": "B"}]
        turns = ToolTurns(form)
        said, _ = turns.calls("", [Call("f", _ARGUMENTS)], "")
        given, _ = turns.result("R", "", "")
        ours = [user, {**answer, "content": said}, {**user, "content": f"{given}\n{given}"},
                {**answer, "content": "B"}]  # fmt: skip
        for system in (None, "S"):
            lead = [] if system is None else [{"role": "system", "content": system}]
            whole = form.flat_system(system, form.listed([_TOOL], ""))
            if tokenizer.render_chat(lead + theirs, tools=[_TOOL]) != (
                tokenizer.render_chat([{"role": "system", "content": whole}, *ours])
            ):
                return None
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None  # a template that does not know tools may do anything with them
    return form
