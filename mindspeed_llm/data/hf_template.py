"""Owns rendering with a tokenizer's own chat template (jinja, in a sandbox).

It yields the same parts as the table of templates, so masks, special-token safety and generation
prompts follow the same rules. It knows no file format and no model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from mindspeed_llm.data.chat_template import CONTENT, Part, split_markers
from mindspeed_llm.data.jinja_chat import render_blocks
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.errors import TemplateError

# Private-use characters stand for contents while jinja runs; no template compares with them.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_SHOWN = 80


class _Form(NamedTuple):
    """The template's text around the contents of some roles.

    `text` is what stands before content 0, between it and content 1, ..., behind the last.
    `starts[i]` is where in `text[i]`, the text before content i, answer i begins (what it is
    generated with), `ends[i]` where in `text[i + 1]` it ends, its end-of-turn token included; None
    for what is no answer. `trains[i]` is False for an answer outside of `{% generation %}`.
    """

    text: tuple[str, ...]
    starts: tuple[int | None, ...]
    ends: tuple[int | None, ...]
    trains: tuple[bool, ...]


class HfChatTemplate:
    """The chat template of a tokenizer as a `ChatTemplate`.

    Contents are put in after jinja has run, so special-token text that a user types stays text.
    What is trained begins where the prompt for that answer ends, and ends with the end-of-turn
    token; where the template has `{% generation %}`, only what stands in it. A template is refused
    whose output depends on contents (one that strips an answer's thinking, for instance), that
    rewrites earlier turns, or whose prompt is not what it writes before an answer, because no mask
    and no prompt prefix would be true.

    Raises:
        TemplateError: the tokenizer has no chat template, or answers do not end in a special token.
    """

    name = "hf"
    answer = CONTENT

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.chat_template is None:
            raise TemplateError("--hf-chat-template: the tokenizer has no chat template "
                                "(chat_template.jinja); give --prompt-type instead")  # fmt: skip
        self._tokenizer, self._source = tokenizer, tokenizer.chat_template
        self._special = tuple(tokenizer.token(i) for i in sorted(tokenizer.special_ids))
        self._marks = bool(_GENERATION.search(self._source))
        self._forms: dict[tuple[Any, ...], _Form] = {}
        self._strips = {role: self._strips_content(role) for role in ("system", "user",
                                                                      "assistant")}  # fmt: skip
        form = self._form([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
                          False)  # fmt: skip
        self.end = self._end_behind(form.text[-1])[0]

    @property
    def markers(self) -> tuple[str, ...]:
        """See `ChatTemplate.markers`."""
        return (self.end,)

    def fingerprint(self) -> str:
        """See `ChatTemplate.fingerprint`."""
        return hashlib.sha256(self._source.encode()).hexdigest()

    def expand(self, conversation: Conversation) -> list[Conversation]:
        """See `ChatTemplate.expand`; a template that rewrites earlier answers is refused."""
        return [conversation]

    def plan(self, conversation: Conversation) -> list[Part]:
        """See `ChatTemplate.plan`."""
        messages = _messages(conversation)
        form = self._form(messages, conversation.is_open)
        contents = [self._content(message) for message in messages]
        whole = "".join(t + c for t, c in zip(form.text, [*contents, ""], strict=True))
        if whole != self._render(messages, conversation.is_open):
            raise TemplateError("--hf-chat-template: this template's output depends on what the "
                                "turns say, so training and generation would differ; use a "
                                "--prompt-type")  # fmt: skip
        turns = ([None] if conversation.system is not None else []) + list(conversation.messages)
        parts: list[Part] = []
        begun = 0  # of the text before the next content, how much the answer before it took
        train = False
        for index, content in enumerate(contents):
            start, end = form.starts[index], form.ends[index]
            before = form.text[index][begun:] if start is None else form.text[index][begun:start]
            parts += self._cut(before, train)
            begun = 0
            message = turns[index]
            train = message is not None and conversation.is_target(message) and form.trains[index]
            if start is None or end is None:
                parts.append(Part("text", content, train))
                continue
            *said, marker = self._pieces(form.text[index + 1][:end])
            text = form.text[index][start:] + content + "".join(said)
            parts += [Part("answer", text, train), Part("marker", marker, train)]
            begun, train = end, False
        return parts + self._cut(form.text[-1][begun:], train)

    def _cut(self, text: str, trained: bool) -> list[Part]:
        """Parts of the template's own text; a user's turn is trained up to its first marker."""
        parts = []
        pieces = self._pieces(text)
        trained = trained and any(piece in self._special for piece in pieces)
        for piece in pieces:
            special = piece in self._special
            parts.append(Part("marker" if special else "text", piece, trained))
            trained = trained and not special
        return parts

    def _pieces(self, text: str) -> list[str]:
        return split_markers(text, self._special)

    def _form(self, messages: Sequence[Mapping[str, str]], is_open: bool) -> _Form:
        """The form of these roles, checked against the prompts for each of its answers."""
        roles = tuple(m["role"] for m in messages)
        if (roles, is_open) not in self._forms:
            text, blocks = self._split(messages, is_open)
            starts: list[int | None] = [None] * len(roles)
            ends: list[int | None] = [None] * len(roles)
            trains = [True] * len(roles)
            for index, role in enumerate(roles):
                if role == "assistant":
                    start = self._start(text, messages, index)
                    starts[index], ends[index] = start, self._end_behind(text[index + 1])[1]
                    self._check_earlier(text, messages, index)
                    if self._marks and not is_open:
                        trains[index] = self._check_block(text, index, start, blocks)
            form = _Form(tuple(text), tuple(starts), tuple(ends), tuple(trains))
            self._forms[roles, is_open] = form
        return self._forms[roles, is_open]

    def _start(self, text: Sequence[str], messages: Sequence[Mapping[str, str]], index: int) -> int:
        """Where in `text[index]` the answer begins: where the prompt for it ends."""
        prompt, _ = self._split(messages[:index], True)
        if list(text[:index]) != prompt[:-1] or not text[index].startswith(prompt[-1]):
            raise TemplateError("--hf-chat-template: what this template puts before an answer in "
                                "training is not the prompt it makes for generation:\n"
                                f"  training   ...{''.join(text[: index + 1])[-_SHOWN:]!r}\n"
                                f"  generation ...{''.join(prompt)[-_SHOWN:]!r}\n"
                                "use a --prompt-type")  # fmt: skip
        return len(prompt[-1])

    def _check_block(self, text: Sequence[str], index: int, start: int,
                     blocks: Sequence[tuple[int, int]]) -> bool:  # fmt: skip
        """Whether `{% generation %}` holds answer `index`; if so, all of it and nothing less."""
        before = sum(len(t) for t in text[:index]) + sum(len(_blank(i)) for i in range(index))
        at = before + len(text[index])  # of the content, in the rendered text
        end = at + len(_blank(index)) + self._end_behind(text[index + 1])[1]
        block = next(((a, b) for a, b in blocks if a <= at < b), None)
        if block is None:
            return False
        if block[0] > before + start or block[1] < end:
            what = "what is generated before" if block[0] > before + start else "the end of"
            raise TemplateError("--hf-chat-template: {% generation %} in this template leaves out "
                                f"{what} an answer, so a model cannot learn it; use a "
                                "--prompt-type")  # fmt: skip
        return True

    def _check_earlier(self, text: Sequence[str], messages: Sequence[Mapping[str, str]],
                       index: int) -> None:  # fmt: skip
        """An answer must stand in later turns' history as it was generated."""
        if index == len(messages) - 1:
            return
        alone, _ = self._split(messages[: index + 1], False)
        end = self._end_behind(alone[-1])[1]
        if list(text[: index + 1]) != alone[:-1] or text[index + 1][:end] != alone[-1][:end]:
            raise TemplateError("--hf-chat-template: this template writes an answer otherwise once "
                                "more turns follow, so no row of several answers trains them as "
                                "they are generated:\n"
                                f"  last    ...{''.join(alone[:-1])[-_SHOWN:]!r}\n"
                                f"  earlier ...{''.join(text[: index + 1])[-_SHOWN:]!r}\n"
                                "use a --prompt-type with --thinking (qwen3, deepseek3), or rows "
                                "of one answer")  # fmt: skip

    def _split(self, messages: Sequence[Mapping[str, str]],
               is_open: bool) -> tuple[list[str], list[tuple[int, int]]]:  # fmt: skip
        """The text around the contents, and the characters inside `{% generation %}`."""
        blank = [{**m, "content": _blank(i)} for i, m in enumerate(messages)]
        rendered = self._render(blank, is_open)
        form = _SENTINEL.split(rendered)
        if [int(number) for number in form[1::2]] != list(range(len(messages))):
            raise TemplateError("--hf-chat-template: this template leaves out, repeats or reorders "
                                "turns; use a --prompt-type")  # fmt: skip
        return form[::2], self._blocks(blank, rendered) if self._marks and not is_open else []

    def _blocks(self, messages: Sequence[Mapping[str, str]],
                rendered: str) -> list[tuple[int, int]]:  # fmt: skip
        text, blocks = render_blocks(self._source, messages, self._tokenizer.named)
        if text != rendered:
            raise TemplateError("--hf-chat-template: this template writes another text when it is "
                                "asked for {% generation %}; use a --prompt-type")  # fmt: skip
        return blocks

    def _render(self, messages: Sequence[Mapping[str, str]], is_open: bool) -> str:
        try:
            return self._tokenizer.render_chat(messages, add_generation_prompt=is_open)
        except jinja2.TemplateError as err:
            raise TemplateError(f"--hf-chat-template: the template refuses "
                                f"{[m['role'] for m in messages]}: {err}") from err  # fmt: skip

    def _content(self, message: Mapping[str, str]) -> str:
        text = message["content"]
        return text.strip() if self._strips[message["role"]] else text

    def _strips_content(self, role: str) -> bool:
        texts = {"system": "s", "user": "x", "assistant": "y"}
        roles = ("system", "user", "assistant") if role == "system" else ("user", "assistant")
        messages = [{"role": r, "content": f"  {texts[r]}  " if r == role else texts[r]}
                    for r in roles]  # fmt: skip
        try:
            return f"  {texts[role]}  " not in self._render(messages, False)
        except TemplateError:
            if role == "system":  # a template may refuse system texts
                return False
            raise

    def _end_behind(self, text: str) -> tuple[str, int]:
        """The first special token behind an answer, and where in `text` it ends."""
        length = 0
        for piece in self._pieces(text):
            length += len(piece)
            if piece in self._special:
                return piece, length
        raise TemplateError("--hf-chat-template: no special token ends an answer in this template, "
                            "so a model cannot learn to stop; use a --prompt-type")  # fmt: skip


def _blank(index: int) -> str:
    return f"{_OPEN}{index}{_CLOSE}"


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    if conversation.system is not None:
        messages.insert(0, {"role": "system", "content": conversation.system})
    return messages
