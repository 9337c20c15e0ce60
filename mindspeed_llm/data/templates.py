"""Owns the chat templates, one table of data, and how a conversation becomes parts of a text.

It knows no tokenizer: a part is a marker (one token), plain text, or an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.errors import TemplateError

BOS = "{bos}"
CONTENT = "{content}"


class Part(NamedTuple):
    """A piece of a rendered conversation.

    kind "marker": `text` is a special token (BOS stands for the tokenizer's own);
    "text": plain text, in which special tokens mean nothing; "answer": an assistant's text, which
    starts its own tokenization so that what precedes it is exactly the prompt of generation.
    """

    kind: Literal["marker", "text", "answer"]
    text: str
    trained: bool = False


class ChatTemplate(Protocol):
    """What the renderer needs of a template."""

    name: str

    @property
    def end(self) -> str:
        """The end-of-turn marker that stops an answer."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens the template writes; each must be one token of the tokenizer."""

    def plan(self, conversation: Conversation) -> list[Part]:
        """Parts of the conversation; one that ends with the user ends with the answer's header."""

    def fingerprint(self) -> str:
        """Hash that changes when the output of `plan` can change."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template as data. `{content}` stands for the turn's text, `{bos}` for the BOS token.

    Args:
        name: value of `--prompt-type`.
        markers: special tokens that occur below.
        prefix: written once, first.
        system: form of the system text; empty: it is put before the first user text instead,
            with a blank line between (Gemma 3's own rule).
        default_system: system text of a conversation that has none; None: no system block.
        user: form of a user's turn.
        header: what stands before every answer.
        end: end-of-turn marker; it is trained with the answer.
        after: text between the end-of-turn marker and the next turn, also after the last;
            not trained.
        trim: whether the model's own template strips white space around contents.
        trim_system: the same for the system text.
    """

    name: str
    markers: tuple[str, ...]
    prefix: str = ""
    system: str = ""
    default_system: str | None = None
    user: str
    header: str
    end: str
    after: str = ""
    trim: bool = False
    trim_system: bool = False

    def plan(self, conversation: Conversation) -> list[Part]:
        """See `ChatTemplate.plan`."""
        system = conversation.system
        system = self.default_system if system is None else system
        if system is not None and self.trim_system:
            system = system.strip()
        parts = list(self._fill(self.prefix, ""))
        lead = ""
        if system is not None and self.system:
            parts += self._fill(self.system, system)
        elif system is not None:
            lead = system + "\n\n"
        for message in conversation.messages:
            text = message.content.strip() if self.trim else message.content
            if message.role == "user":
                parts += self._fill(self.user, text, lead, conversation.is_target(message))
                parts += self._fill(self.header, "")
                lead = ""
            else:
                parts.append(Part("answer", text, message.train))
                parts.append(Part("marker", self.end, message.train))
                parts += self._fill(self.after, "")
        return parts

    def _fill(self, form: str, content: str, lead: str = "", train: bool = False) -> list[Part]:
        """Parts of a form; with `train` the content and the marker that ends it are targets."""
        # The form is split first and the content put in afterwards: nothing a user types is ever
        # read as a marker or as a placeholder.
        parts: list[Part] = []
        inside = False
        for part in _split_form(form, self.markers):
            if part is None:
                parts += [Part("text", lead)] if lead else []
                inside = train
            parts.append(Part("text", content, inside) if part is None else
                         Part(part.kind, part.text, inside))  # fmt: skip
            inside = inside and parts[-1].kind != "marker"
        return parts

    def fingerprint(self) -> str:
        """Hash of the template's data."""
        data = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _split_form(form: str, markers: tuple[str, ...]) -> tuple[Part | None, ...]:
    """Parts of a form; None stands for the content."""
    pieces = split_markers(form, (BOS, CONTENT, *markers))
    return tuple(None if p == CONTENT else
                 Part("marker" if p == BOS or p in markers else "text", p)
                 for p in pieces)  # fmt: skip


def split_markers(text: str, markers: Sequence[str]) -> list[str]:
    """Cut `text` at every marker (the longest where several fit); empty pieces are left out."""
    if not markers:
        return [text] if text else []
    longest_first = sorted(markers, key=len, reverse=True)
    pattern = "(" + "|".join(re.escape(m) for m in longest_first) + ")"
    return [piece for piece in re.split(pattern, text) if piece]


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


def _chatml(name: str, default_system: str | None) -> Template:
    return Template(
        name=name,
        markers=("<|im_start|>", "<|im_end|>"),
        system="<|im_start|>system\n{content}<|im_end|>\n",
        default_system=default_system,
        user="<|im_start|>user\n{content}<|im_end|>\n",
        header="<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
    )


_TABLE = (
    _gemma("gemma"),
    _gemma("gemma2"),
    _gemma("gemma3"),
    _chatml("chatml", None),
    _chatml("qwen", "You are a helpful assistant."),
    _chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    _chatml(
        "smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    ),
    Template(
        name="llama3",
        markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        prefix="{bos}",
        system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        trim=True,
        trim_system=True,
    ),
)  # fmt: skip

TEMPLATES: dict[str, Template] = {template.name: template for template in _TABLE}


def find_template(name: str) -> Template:
    """The template called `name` (`--prompt-type`).

    Raises:
        TemplateError: there is none; lists what there is.
    """
    if name not in TEMPLATES:
        raise TemplateError(f"--prompt-type {name}: no such template; there are "
                            f"{', '.join(TEMPLATES)}. Or use the tokenizer's own chat template: "
                            "--hf-chat-template")  # fmt: skip
    return TEMPLATES[name]
