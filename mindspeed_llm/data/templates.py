"""Owns the table of chat templates, each as its model's own template writes it.

It knows no tokenizer and no rule of rendering.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from mindspeed_llm.data.chat_template import EOS, Template
from mindspeed_llm.data.mindspeed_templates import MINDSPEED_TEMPLATES
from mindspeed_llm.data.tool_form import Repeated, ToolForm
from mindspeed_llm.errors import TemplateError

MINDSPEED = "mindspeed"

QWEN_TOOLS = ToolForm(
    tools="# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    "<tools>{content}\n</tools>\n\nFor each function call, return a json object with function "
    "name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    tool="\n{json}",
    call='<tool_call>\n{"name": {quoted}, "arguments": {arguments}}\n</tool_call>',
    calls=Repeated(between="\n"),
    beside="\n",
    results=Repeated("<tool_response>\n{content}\n</tool_response>", "\n"),
    flat=True,
)
# Llama 3.1 and later: one call at a time, and no text beside it.
_LLAMA_TOOLS = ToolForm(
    tools="Given the following functions, please respond with a JSON for a function call with its "
    "proper arguments that best answers the given prompt.\n\nRespond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n{content}",
    place="question",
    tool="{json}\n\n",
    indent=4,
    system="<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{content}<|eot_id|>",
    call='{"name": "{name}", "parameters": {arguments}}',
    calls=Repeated(),
    several=False,
    results=Repeated("<|start_header_id|>ipython<|end_header_id|>\n\n{content}<|eot_id|>"),
    quoted="all",
)
# The call's end is the result's marker, as an answer's end is the next question's. One line end
# before a tool: the template has two, and jinja as transformers runs it takes one.
_GLM_TOOLS = ToolForm(
    tools="<|system|>\n你是一个名为 ChatGLM 的人工智能助手。"
    "你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具{content}",
    place="block",
    tool="\n## {name}\n\n{json}\n在调用上述函数时，请使用 Json 格式表示调用的参数。",
    indent=4,
    bare=True,
    call="{name}\n{arguments}",
    calls=Repeated(),
    several=False,
    call_end="<|observation|>",
    results=Repeated("\n{content}", between="<|observation|>"),
    markers=("<|observation|>",),
)
# The first release's template leaves calls open and writes no tools; this is that of V3-0324.
_DEEPSEEK_TOOLS = ToolForm(
    call="{name}\n```json\n{arguments}\n```",
    calls=Repeated("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{content}<｜tool▁call▁end｜>", "\n",
                   "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    beside="",
    results=Repeated("<｜tool▁output▁begin｜>{content}<｜tool▁output▁end｜>", "\n",
                     "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"),
    header="",
    markers=tuple(f"<｜tool▁{name}｜>" for name in (
        "calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep",
        "outputs▁begin", "outputs▁end", "output▁begin", "output▁end")),
)  # fmt: skip


def _mistral_tools(blank: str) -> ToolForm:
    return ToolForm(
        tools=f"[AVAILABLE_TOOLS]{blank}[{{content}}][/AVAILABLE_TOOLS]",
        place="block",
        tool='{"type": "function", "function": {json}}',
        between=", ",
        bare=True,
        hidden=("return",),
        call='{"name": {quoted}, "arguments": {arguments}, "id": "{id}"}',
        calls=Repeated(between=", ", begin=f"[TOOL_CALLS]{blank}[", end="]"),
        result='{"content": {result}, "call_id": "{id}"}',
        # As Mistral's own encoder does; the published template leaves a text bare: no JSON.
        quoted="texts",
        results=Repeated(f"[TOOL_RESULTS]{blank}{{content}}[/TOOL_RESULTS]"),
        header="",
        markers=("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
                 "[/TOOL_RESULTS]"),
    )  # fmt: skip


def _gemma(name: str) -> Template:
    return Template(
        name=name,
        markers=("<start_of_turn>", "<end_of_turn>"),
        prefix="{bos}",
        user="<start_of_turn>user\n{content}<end_of_turn>\n",
        header="<start_of_turn>model\n",
        end="<end_of_turn>",
        after="\n",
        trim=True,
    )


def _chatml(name: str, default_system: str | None, prefix: str = "",
            tools: ToolForm | None = None) -> Template:  # fmt: skip
    return Template(
        name=name,
        markers=("<|im_start|>", "<|im_end|>"),
        prefix=prefix,
        system="<|im_start|>system\n{content}<|im_end|>\n",
        default_system=default_system,
        user="<|im_start|>user\n{content}<|im_end|>\n",
        header="<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        tools=tools,
    )


def _llama3(name: str, dates: str) -> Template:
    """Its own templates from 3.1 on begin the system text with dates, also where there is none."""
    return Template(
        name=name,
        markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        prefix="{bos}",
        system=f"<|start_header_id|>system<|end_header_id|>\n\n{dates}{{content}}<|eot_id|>",
        default_system="" if dates else None,
        user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        trim=True,
        trim_system=True,
        tools=_LLAMA_TOOLS if dates else None,
    )


def _mistral_v1(name: str) -> Template:
    """Mistral 7B v0.1 and v0.2, Mixtral 8x7B: markers are plain text, a blank before each."""
    return Template(
        name=name,
        markers=(),
        prefix="{bos}",
        user=" [INST] {content}",
        header=" [/INST]",
        answer=" {content}",
        end=EOS,
    )


def _mistral_v3(name: str, blank: str) -> Template:
    """Markers are tokens. The models' own template moves the system text to the last question;
    here it stays in the first, since no row of several answers could follow it as it moves.
    """
    return Template(
        name=name,
        markers=("[INST]", "[/INST]"),
        prefix="{bos}",
        user=f"[INST]{blank}{{content}}",
        header="[/INST]",
        answer=f"{blank}{{content}}",
        end=EOS,
        tools=_mistral_tools(blank),
        trim_answer=bool(blank),  # as the models' own templates do where a blank precedes it
    )


def _deepseek2(name: str) -> Template:
    return Template(
        name=name,
        markers=(),
        prefix="{bos}",
        system="{content}\n\n",
        user="User: {content}\n\n",
        header="Assistant:",
        answer=" {content}",
        end=EOS,
    )


def _without_end(name: str, prefix: str) -> Template:
    return Template(name=name, markers=(), prefix=prefix, user="{content}", header="", end="")


_TABLE = (
    _gemma("gemma"),
    _gemma("gemma2"),
    _gemma("gemma3"),
    _chatml("chatml", None, tools=QWEN_TOOLS),
    _chatml("qwen", "You are a helpful assistant.", tools=QWEN_TOOLS),
    _chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            tools=QWEN_TOOLS),
    dataclasses.replace(
        _chatml("qwen3", None, tools=QWEN_TOOLS),
        think=("<think>", "</think>"),
        think_block="<think>\n{content}\n</think>\n\n",
        tool_result=("<tool_response>", "</tool_response>"),
    ),
    _chatml(
        "smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    ),
    _chatml("intern2", None, prefix="{bos}"),
    Template(
        name="llama2",
        markers=(),
        user="{bos}[INST] {content}",
        header=" [/INST]",
        answer=" {content} ",
        end=EOS,
        lead="<<SYS>>\n{content}\n<</SYS>>\n\n",
        trim=True,
        trim_merged=True,
    ),
    _llama3("llama3", ""),
    _llama3("llama3.1", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"),
    _mistral_v1("mistral"),
    _mistral_v1("mixtral"),
    _mistral_v1("mistral-v1"),
    _mistral_v3("mistral-v3", " "),
    _mistral_v3("mistral-v3-tekken", ""),
    _deepseek2("deepseek2"),
    _deepseek2("deepseek2-lite"),
    Template(
        name="deepseek3",
        markers=("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        prefix="{bos}",
        system="{content}",
        user="<｜User｜>{content}",
        header="<｜Assistant｜>",
        end="<｜end▁of▁sentence｜>",
        think=("<think>", "</think>"),
        tools=_DEEPSEEK_TOOLS,
    ),
    # The next question's own marker ends an answer, and one more ends the last: it is what the
    # model generates to stop.
    Template(
        name="glm4",
        markers=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        prefix="[gMASK]<sop>",
        system="<|system|>\n{content}",
        first_user="<|user|>\n{content}",
        user="\n{content}",
        header="<|assistant|>",
        answer="\n{content}",
        end="<|user|>",
        tools=_GLM_TOOLS,
    ),
    # The model stops with eos; its own code leaves it out between turns and puts the label on the
    # next question's marker instead, which is no token that follows.
    Template(
        name="baichuan2",
        markers=("<reserved_106>", "<reserved_107>"),
        system="{content}",
        user="<reserved_106>{content}",
        header="<reserved_107>",
        end=EOS,
    ),
    Template(
        name="phi3",
        markers=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        system="<|system|>\n{content}<|end|>\n",
        user="<|user|>\n{content}<|end|>\n",
        header="<|assistant|>\n",
        end="<|end|>",
        after="\n",
        tail=EOS,
    ),
    Template(
        name="alpaca",
        markers=(),
        system="{content}",
        default_system="Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n",
        first_user="### Instruction:\n{content}\n\n",
        user="\n\n### Instruction:\n{content}\n\n",
        header="### Response:\n",
        end=EOS,
    ),
    Template(
        name="default",
        markers=(),
        system="{content}\n",
        first_user="Human: {content}\n",
        user="\nHuman: {content}\n",
        header="Assistant:",
        end=EOS,
    ),
    _without_end("empty", ""),
    _without_end("trl", "{bos}"),
)  # fmt: skip

TEMPLATES: dict[str, Template] = {template.name: template for template in _TABLE}


def find_template(
    name: str,
    compat: str | None = None,
    thinking: Literal["expand", "strip-history", "keep"] | None = None,
) -> Template:
    """The template called `name` (`--prompt-type`).

    Args:
        name: of the table.
        compat: `--template-compat`; "mindspeed": as MindSpeed-LLM 2.1 renders it.
        thinking: `--thinking`, see `Template`; None: "expand".

    Raises:
        TemplateError: there is none (lists what there is), or it knows no thinking.
    """
    table = MINDSPEED_TEMPLATES if compat == MINDSPEED else TEMPLATES
    if name not in table:
        there = f"no such template{' of MindSpeed-LLM' if compat == MINDSPEED else ''}; there are"
        raise TemplateError(f"--prompt-type {name}: {there} {', '.join(table)}. Or use the "
                            "tokenizer's own chat template: --hf-chat-template")  # fmt: skip
    template = table[name]
    if thinking is None:
        return template
    if template.think is None:
        able = ", ".join(t.name for t in table.values() if t.think is not None)
        raise TemplateError(f"--thinking {thinking}: template {name} knows no thinking; those that "
                            f"do: {able}")  # fmt: skip
    return dataclasses.replace(template, thinking=thinking)
