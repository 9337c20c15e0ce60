"""Owns the chat templates as MindSpeed-LLM 2.1 renders them, for `--template-compat mindspeed`.

They differ from the models' own: what ends an answer, where a system text stands, where line ends
are. It knows no tokenizer and no rule of rendering.
"""

from __future__ import annotations

from mindspeed_llm.data.chat_template import CONTENT, EOS, Template

_NO_END = ""


def _mindspeed(name: str, *, user: str, header: str, end: str = EOS, system: str = CONTENT,
               between: str = "", **fields: object) -> Template:  # fmt: skip
    """A template of theirs: `between` stands before every question but the first."""
    return Template(
        name=name,
        system=system,
        first_user=user,
        user=between + user,
        header=header,
        end=end,
        apart=True,
        empty_system=False,
        **fields,  # type: ignore[arg-type]
    )


def _im(name: str, **fields: object) -> Template:
    return _mindspeed(
        name,
        markers=("<|im_start|>", "<|im_end|>"),
        system="<|im_start|>system\n{content}<|im_end|>\n",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        header="<|im_start|>assistant\n",
        end="<|im_end|>",
        **fields,  # type: ignore[arg-type]
    )


def _inst(name: str) -> Template:
    return _mindspeed(name, markers=(), prefix="{bos}", user="[INST] {content}", header=" [/INST]")


def _user_assistant(name: str) -> Template:
    return _mindspeed(name, markers=(), prefix="{bos}", system="{content}\n\n",
                      user="User: {content}\n\n", header="Assistant:")  # fmt: skip


_TABLE = (
    _mindspeed(
        "gemma",
        markers=("<start_of_turn>", "<end_of_turn>"),
        prefix="{bos}",
        user="<start_of_turn>user\n{content}<end_of_turn>\n",
        header="<start_of_turn>model\n",
        between="<end_of_turn>\n{cut}",
        end=_NO_END,
        eos_label=True,
    ),
    _im("chatml", between="\n{cut}"),
    _im("qwen", between="\n{cut}", default_system="You are a helpful assistant."),
    _im("intern2", prefix="{bos}", after="\n", train_after=True),
    # The system text stands inside the first question, which begins with BOS.
    Template(
        name="llama2",
        markers=(),
        user="{bos}{cut}[INST] {content}",
        header=" [/INST]",
        end=EOS,
        lead="<<SYS>>\n{content}\n<</SYS>>\n\n",
        apart=True,
        empty_system=False,
    ),
    _mindspeed(
        "llama3",
        markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        prefix="{bos}",
        system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
    ),
    _inst("mistral"),
    _inst("mixtral"),
    _user_assistant("deepseek2"),
    _user_assistant("deepseek2-lite"),
    _mindspeed(
        "deepseek3",
        markers=("<｜User｜>", "<｜Assistant｜>"),
        prefix="{bos}",
        user="<｜User｜>{content}",
        header="<｜Assistant｜>",
    ),
    _mindspeed(
        "glm4",
        markers=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        prefix="[gMASK]<sop>",
        system="<|system|>\n{content}",
        user="<|user|>\n{content}",
        header="<|assistant|>",
        answer="\n{content}",
        end=_NO_END,
        eos_label=True,
    ),
    _mindspeed(
        "baichuan2",
        markers=("<reserved_106>", "<reserved_107>"),
        user="<reserved_106>{content}",
        header="<reserved_107>",
        end=_NO_END,
        eos_label=True,
    ),
    _mindspeed(
        "alpaca",
        markers=(),
        default_system="Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n",
        user="### Instruction:\n{content}\n\n",
        header="### Response:\n",
        between="\n\n{cut}",
    ),
    _mindspeed(
        "default",
        markers=(),
        system="{content}\n",
        user="Human: {content}\n",
        header="Assistant:",
        between="\n{cut}",
    ),
    _mindspeed("empty", markers=(), user="{content}", header="", end=_NO_END),
    _mindspeed("trl", markers=(), prefix="{bos}", user="{content}", header="", end=_NO_END),
)

MINDSPEED_TEMPLATES: dict[str, Template] = {template.name: template for template in _TABLE}
