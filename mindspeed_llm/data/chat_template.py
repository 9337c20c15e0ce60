"""Owns what a chat template is: data, and how with it a conversation becomes parts of a text.

It knows no tokenizer and no model: a part is a marker (one token), plain text, or an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.tool_form import ToolForm

BOS = "{bos}"
EOS = "{eos}"
CUT = "{cut}"
CONTENT = "{content}"


class Part(NamedTuple):
    """A piece of a rendered conversation.

    kind "marker": `text` is a special token (BOS and EOS stand for the tokenizer's own);
    "text": plain text, in which special tokens mean nothing; "answer": an assistant's text, which
    starts its own tokenization so that what precedes it is exactly the prompt of generation;
    "cut": nothing, but what follows is tokenized as if nothing preceded it.

    `label` is a marker whose id is the label instead of this one's own (MindSpeed-LLM only).
    `verbatim` says that an answer stands here as it was generated.
    """

    kind: Literal["marker", "text", "answer", "cut"]
    text: str
    trained: bool = False
    label: str = ""
    verbatim: bool = True


class ChatTemplate(Protocol):
    """What the renderer needs of a template."""

    name: str

    @property
    def end(self) -> str:
        """The end-of-turn marker that stops an answer; empty: there is none."""

    @property
    def answer(self) -> str:
        """Form of an answer's text, `{content}` and what is generated around it."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens the template writes; each must be one token of the tokenizer."""

    def plan(self, conversation: Conversation) -> list[Part]:
        """Parts of the conversation; one that ends with the user ends with the answer's header."""

    def expand(self, conversation: Conversation) -> list[Conversation]:
        """Conversations that together train every target as generation would produce it."""

    def fingerprint(self) -> str:
        """Hash that changes when the output of `plan` can change."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template as data.

    In a form `{content}` stands for the turn's text, `{bos}` and `{eos}` for the tokenizer's own
    tokens, and texts on both sides of `{cut}` are tokenized apart.

    Args:
        name: value of `--prompt-type`.
        markers: special tokens that occur below.
        prefix: form written once, first.
        system: form of the system text; empty: `lead` puts it before the first user text.
        default_system: system text of a conversation that has none; None: no system block.
        user: form of a user's turn.
        first_user: form of the first user's turn, where it differs.
        header: form of what stands before every answer.
        answer: form of an answer's text; all of it is generated, and trained.
        end: end-of-turn marker; it is trained with the answer. Empty: there is none.
        after: form between the end-of-turn marker and the next turn, also after the last.
        tail: form written once behind a finished conversation; not trained.
        lead: form of a system text without a block of its own; Gemma 3's own rule by default.
        trim: whether the model's own template strips white space around contents.
        trim_answer: the same for answers only (Mistral v3).
        trim_system: the same for the system text.
        trim_merged: strip a user's text after `lead` was put before it, instead of without it.
        think: tags around the thinking in an answer. The model's own template removes it from
            earlier answers; None: thinking is text like any other.
        think_block: form of the thinking of an answer that is generated, written even where there
            is none (Qwen3); empty: the answer stands as it is.
        tool_result: tags around a user's turn that is the result of a tool and no new question:
            the thinking of an answer before it stays (Qwen3).
        thinking: of earlier answers: "expand" and "strip-history" remove it as the model's own
            template does, and then "expand" gives such an answer a row of its own; "keep": they
            stand as they were generated.
        apart: each form is tokenized as a text of its own (MindSpeed-LLM).
        eos_label: the first token behind an answer has the label eos, and eos ends the row
            (MindSpeed-LLM's efficient_eos).
        train_after: `after` is trained (MindSpeed-LLM).
        empty_system: False: an empty system text asks for the default one (MindSpeed-LLM).
        tools: how tools, calls and results are written; None: they cannot be.
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
    trim_answer: bool = False
    trim_system: bool = False
    first_user: str = ""
    answer: str = CONTENT
    tail: str = ""
    lead: str = CONTENT + "\n\n"
    trim_merged: bool = False
    think: tuple[str, str] | None = None
    think_block: str = ""
    tool_result: tuple[str, str] | None = None
    thinking: Literal["expand", "strip-history", "keep"] = "expand"
    apart: bool = False
    eos_label: bool = False
    train_after: bool = False
    empty_system: bool = True
    tools: ToolForm | None = None

    @property
    def written(self) -> tuple[str, ...]:
        """Every special token that may occur: `markers`, and those of the tool form, which a
        tokenizer need not have."""
        return self.markers if self.tools is None else (*self.markers, *self.tools.markers)

    def plan(self, conversation: Conversation) -> list[Part]:
        """See `ChatTemplate.plan`."""
        system = self._system(conversation)
        parts = self._fill(self.prefix)
        listing = self.tools if conversation.tools else None
        if listing is not None and listing.place == "block":
            parts += self._fill(listing.tools, conversation.tools)
        form = (listing.system if listing is not None else "") or self.system
        lead = ""
        if system is not None and form:
            parts += self._apart() + self._fill(form, system)
        elif system is not None:
            lead = self.lead.replace(CONTENT, system, 1)
        if listing is not None and listing.place == "question":
            lead += listing.tools.replace(CONTENT, conversation.tools, 1)
        eos_due = False
        for index, message in enumerate(conversation.messages):
            if message.role == "user":
                train = conversation.is_target(message)
                parts += (
                    self._results(message, train)
                    if message.tool
                    else (self._question(message.content, lead, index == 0, train, eos_due))
                )
                lead = ""
            else:
                parts += self._reply(message, self._is_earlier(conversation, index))
                eos_due = self.eos_label and message.train
        if not conversation.is_open:
            parts += self._fill(self.tail)
            if self.eos_label:
                parts.append(Part("marker", EOS, eos_due))
        return parts

    def expand(self, conversation: Conversation) -> list[Conversation]:
        """See `ChatTemplate.expand`: an answer that is shown otherwise later has its own row."""
        if self.think is None or self.thinking != "expand":
            return [conversation]
        messages = conversation.messages
        samples = []
        for index, message in enumerate(messages[:-1]):
            earlier = self._is_earlier(conversation, index)
            if (
                message.role == "assistant"
                and message.train
                and not self._spoken(message, earlier)[1]
            ):
                before = tuple(dataclasses.replace(m, train=False) for m in messages[:index])
                samples.append(dataclasses.replace(conversation, messages=(*before, message)))
        if not samples or any(part.trained for part in self.plan(conversation)):
            samples.append(conversation)
        return samples

    def fingerprint(self) -> str:
        """Hash of the template's data; a field added later counts only where it is used."""
        added = {f.name: f.default for f in dataclasses.fields(self) if f.name not in _FIRST_FIELDS}
        plain = dataclasses.replace(self, tools=None)  # a form that is added changes no old row
        data = {key: value for key, value in dataclasses.asdict(plain).items()
                if key not in added or value != added[key]}  # fmt: skip
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def with_tokens(self, special: Iterable[str]) -> Template:
        """Itself, or where forms are tokenized apart a copy that has those special tokens of a
        tokenizer as markers which its own text spells.

        MindSpeed-LLM encodes its text with special tokens on: `mistral` writes the token `[INST]`
        with a tokenizer that has one (Mistral v3), and four pieces with an older one.
        """
        forms = (self.prefix, self.system, self.first_user, self.user, self.header)
        found = [t for t in special if t not in self.markers and any(t in form for form in forms)]
        if not self.apart or not found:
            return self
        return dataclasses.replace(self, markers=(*self.markers, *sorted(found)))

    def _system(self, conversation: Conversation) -> str | None:
        system = conversation.system
        if system is None or not (system or self.empty_system):
            system = self.default_system
        return system.strip() if system is not None and self.trim_system else system

    def _question(self, text: str, lead: str, first: bool, train: bool,
                  eos_due: bool) -> list[Part]:  # fmt: skip
        if self.trim and self.trim_merged:
            text = (lead + text).strip()
            lead, text = text[: len(lead)], text[len(lead) :]
        elif self.trim:
            text = text.strip()
        form = self.first_user if first and self.first_user else self.user
        parts = self._fill(form, text, lead=lead, train=train) + self._fill(self.header)
        if eos_due:
            parts[0] = parts[0]._replace(label=EOS)
        return self._apart() + parts

    def _results(self, message: Message, train: bool) -> list[Part]:
        assert self.tools is not None
        header = self.header if self.tools.header is None else self.tools.header
        form = self.tools.results.form(len(message.tool))
        return self._fill(form, *message.tool, train=train) + self._fill(header)

    def _reply(self, message: Message, earlier: bool) -> list[Part]:
        if message.tool:
            return self._calls(message)
        text, verbatim = self._spoken(message, earlier)
        # An earlier answer that generation would not produce is context, never a target.
        trained = message.train and verbatim
        said = self.answer.replace(CONTENT, text, 1)
        parts = [*self._apart(), Part("answer", said, trained, verbatim=verbatim)]
        if self.end:
            parts.append(Part("marker", self.end, trained))
        after = self._fill(self.after)
        return parts + [part._replace(trained=trained and self.train_after) for part in after]

    def _calls(self, message: Message) -> list[Part]:
        assert self.tools is not None
        said = self._fill(self.tools.calls.form(len(message.tool)), *message.tool)
        if message.content:
            said = [Part("answer", message.content + (self.tools.beside or "")), *said]
        elif said[0].kind == "text":
            said[0] = said[0]._replace(kind="answer")
        said.append(Part("marker", self.tools.call_end or self.end))
        return [part._replace(trained=message.train) for part in said] + self._fill(self.after)

    def _is_earlier(self, conversation: Conversation, index: int) -> bool:
        """Whether an answer precedes the last question, so that its thinking is over."""
        behind = conversation.messages[index + 1 :]
        if not behind or self.think is None:
            return False
        if not self.tool_result or self.think[1] not in conversation.messages[index].content:
            return True
        opening, closing = self.tool_result
        return not all(m.content.startswith(opening) and m.content.endswith(closing)
                       for m in behind if m.role == "user")  # fmt: skip

    def _spoken(self, message: Message, earlier: bool) -> tuple[str, bool]:
        """An answer's text where it stands, and whether that is what is generated."""
        text = message.content.strip() if self.trim or self.trim_answer else message.content
        if self.think is None:
            return text, True
        opening, closing = self.think
        thought, _, _ = text.partition(closing)
        said = text.rpartition(closing)[2]
        if not self.think_block:
            generated, shown = text, said
        else:  # line ends around thinking and answer are the block's, as in Qwen3's own template
            thought = thought.rpartition(opening)[2].strip("\n") if closing in text else ""
            shown = said.lstrip("\n") if closing in text else text
            generated = self.think_block.replace(CONTENT, thought, 1) + said.lstrip("\n")
        if not earlier or self.thinking == "keep":
            return generated, True
        return shown, shown == generated

    def _apart(self) -> list[Part]:
        return [Part("cut", "")] if self.apart else []

    def _fill(self, form: str, *contents: str, lead: str = "",
              train: bool = False) -> list[Part]:  # fmt: skip
        """Parts of a form; with `train` the contents and the marker that ends each are targets."""
        # The form is split first and contents put in afterwards: nothing a user types is ever
        # read as a marker or as a placeholder.
        parts: list[Part] = []
        due = iter(contents)
        inside = False
        for part in _split_form(form, self.written):
            if part is None:
                parts += [Part("text", lead)] if lead else []
                inside = train
            parts.append(Part("text", next(due), inside) if part is None else
                         Part(part.kind, part.text, inside))  # fmt: skip
            inside = inside and parts[-1].kind != "marker"
        return parts


# What a fingerprint was made of when the first data sets were prepared.
_FIRST_FIELDS = ("name", "markers", "prefix", "system", "default_system", "user", "header", "end",
                 "after", "trim", "trim_system")  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _split_form(form: str, markers: tuple[str, ...]) -> tuple[Part | None, ...]:
    """Parts of a form; None stands for the content."""
    special = (BOS, EOS, *markers)
    pieces = split_markers(form, (CUT, CONTENT, *special))
    return tuple(None if p == CONTENT else
                 Part("cut", "") if p == CUT else
                 Part("marker" if p in special else "text", p)
                 for p in pieces)  # fmt: skip


def split_markers(text: str, markers: Sequence[str]) -> list[str]:
    """Cut `text` at every marker (the longest where several fit); empty pieces are left out."""
    if not markers:
        return [text] if text else []
    longest_first = sorted(markers, key=len, reverse=True)
    pattern = "(" + "|".join(re.escape(m) for m in longest_first) + ")"
    return [piece for piece in re.split(pattern, text) if piece]
