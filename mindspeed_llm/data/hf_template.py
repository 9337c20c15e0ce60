"""Owns rendering with a tokenizer's own chat template (jinja, in transformers' sandbox).

It yields the same parts as the table of templates, so masks, special-token safety and generation
prompts follow the same rules. It knows no file format and no model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from mindspeed_llm.data.chat_template import CONTENT, Part, split_markers
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.errors import TemplateError

# Private-use characters stand for contents while jinja runs; no template compares with them.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


class HfChatTemplate:
    """The chat template of a tokenizer as a `ChatTemplate`.

    Contents are put in after jinja has run, so special-token text that a user types stays text. A
    template whose output depends on contents (one that strips an answer's thinking, for instance)
    or that rewrites earlier turns is refused, because no mask and no prompt prefix would be true.

    Raises:
        TemplateError: the tokenizer has no chat template, or answers do not end in a special token.
    """

    name = "hf"
    answer = CONTENT

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._hf = tokenizer.hf
        if self._hf is None or not isinstance(self._hf.chat_template, str):
            raise TemplateError("--hf-chat-template: the tokenizer has no chat template "
                                "(chat_template.jinja); give --prompt-type instead")  # fmt: skip
        added = self._hf.added_tokens_decoder.values()
        self._special = tuple(t.content for t in added if t.special)
        self._forms: dict[tuple[Any, ...], list[str]] = {}
        self._strips = {role: self._strips_content(role) for role in ("user", "assistant")}
        self.end = self._end_marker()

    @property
    def markers(self) -> tuple[str, ...]:
        """See `ChatTemplate.markers`."""
        return (self.end,)

    def fingerprint(self) -> str:
        """See `ChatTemplate.fingerprint`."""
        return hashlib.sha256(self._hf.chat_template.encode()).hexdigest()

    def plan(self, conversation: Conversation) -> list[Part]:
        """See `ChatTemplate.plan`."""
        messages = _messages(conversation)
        form = self._form(messages, conversation.is_open)
        contents = [self._content(message) for message in messages]
        # Odd pieces are numbers of contents (re.split with one group).
        whole = "".join(contents[int(p)] if i % 2 else p for i, p in enumerate(form))
        if whole != self._render(messages, conversation.is_open):
            raise TemplateError("--hf-chat-template: this template's output depends on what the "
                                "turns say, so training and generation would differ; use a "
                                "--prompt-type")  # fmt: skip
        return self._parts(form, contents, conversation)

    def expand(self, conversation: Conversation) -> list[Conversation]:
        """See `ChatTemplate.expand`; a template that rewrites earlier answers is refused."""
        return [conversation]

    def _parts(self, form: Sequence[str], contents: Sequence[str],
               conversation: Conversation) -> list[Part]:  # fmt: skip
        turns = ([None] if conversation.system is not None else []) + list(conversation.messages)
        parts: list[Part] = []
        train = False
        for index, piece in enumerate(form):
            if index % 2:
                message = turns[int(piece)]
                answer = message is not None and message.role == "assistant"
                train = message is not None and conversation.is_target(message)
                kind = "answer" if answer else "text"
                parts.append(Part(kind, contents[int(piece)], train))
                continue
            for text in split_markers(piece, self._special):
                special = text in self._special
                parts.append(Part("marker" if special else "text", text, train))
                train = train and not special  # trained up to the end-of-turn token, not beyond
        return parts

    def _form(self, messages: Sequence[Mapping[str, str]], is_open: bool) -> list[str]:
        """The template's text around the contents, cut at them; the same for equal roles."""
        roles = tuple(m["role"] for m in messages)
        if (roles, is_open) not in self._forms:
            form = self._cut(messages, is_open)
            for index, role in enumerate(roles):
                if role == "assistant":
                    self._check_prefix(form, messages[:index])
            self._forms[roles, is_open] = form
        return self._forms[roles, is_open]

    def _cut(self, messages: Sequence[Mapping[str, str]], is_open: bool) -> list[str]:
        blank = [{**m, "content": f"{_OPEN}{i}{_CLOSE}"} for i, m in enumerate(messages)]
        form = _SENTINEL.split(self._render(blank, is_open))
        if [int(number) for number in form[1::2]] != list(range(len(messages))):
            raise TemplateError("--hf-chat-template: this template leaves out, repeats or reorders "
                                "turns; use a --prompt-type")  # fmt: skip
        return form

    def _check_prefix(self, form: Sequence[str], before: Sequence[Mapping[str, str]]) -> None:
        prompt = self._cut(before, True)
        if list(form[: len(prompt)]) != prompt:
            raise TemplateError("--hf-chat-template: what this template puts before an answer in "
                                "training is not the prompt it makes for generation:\n"
                                f"  training   ...{''.join(form[: len(prompt)])[-80:]!r}\n"
                                f"  generation ...{''.join(prompt)[-80:]!r}\n"
                                "use a --prompt-type")  # fmt: skip

    def _render(self, messages: Sequence[Mapping[str, str]], is_open: bool) -> str:
        try:
            return self._hf.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=is_open
            )
        except jinja2.TemplateError as err:
            raise TemplateError(f"--hf-chat-template: the template refuses "
                                f"{[m['role'] for m in messages]}: {err}") from err  # fmt: skip

    def _content(self, message: Mapping[str, str]) -> str:
        text = message["content"]
        return text.strip() if self._strips.get(message["role"], False) else text

    def _strips_content(self, role: str) -> bool:
        user = {"role": "user", "content": " x " if role == "user" else "x"}
        answer = {"role": "assistant", "content": " y " if role == "assistant" else "y"}
        return f" {'x' if role == 'user' else 'y'} " not in self._render([user, answer], False)

    def _end_marker(self) -> str:
        form = self._cut([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
                         False)  # fmt: skip
        for piece in split_markers(form[-1], self._special):
            if piece in self._special:
                return piece
        raise TemplateError("--hf-chat-template: no special token ends an answer in this template, "
                            "so a model cannot learn to stop; use a --prompt-type")  # fmt: skip


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    if conversation.system is not None:
        messages.insert(0, {"role": "system", "content": conversation.system})
    return messages
