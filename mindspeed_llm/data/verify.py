"""Owns comparing what the renderer makes with the tokenizer's own chat template.

It stops at the first difference and shows it. It knows no file format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jinja2

from mindspeed_llm.data.chat_template import BOS, CONTENT, EOS, Part, Template
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.errors import TemplateError
from mindspeed_llm.logging import get_logger

_LOG = get_logger(__name__)
_TALK = Conversation.of("Hello.", "Hi, how are you?", "Well.\n\nAnd you?", "Very well.", "1?", "2")
_PROBES = (
    dataclasses.replace(_TALK, messages=_TALK.messages[:2]),
    _TALK,
    dataclasses.replace(_TALK, messages=_TALK.messages[:2], system="Be brief."),
    dataclasses.replace(_TALK, system="Be brief."),
)
_BEFORE, _BEHIND = 8, 16
_MEND = ("Choose the model's own --prompt-type or --hf-chat-template; if the difference is wanted: "
         "--no-verify-template")  # fmt: skip


def verify_template(
    renderer: Renderer, conversations: Sequence[Conversation] = (), *, mend: str = _MEND
) -> int | None:
    """Compare the renderer's output with the tokenizer's own template: text, token ids, prompts.

    With the tokenizer's own template the text is the same by construction; the ids need not be,
    where a tokenizer changes a text that it gets in pieces (one that puts a blank before each).
    Dialogues of one and of three turns, without and with a system text, are always compared too
    (with the tokenizer's own template: one of one turn).

    Passed over are rows that the tokenizer's template refuses (Gemma 1 and 2 refuse a system text),
    whose system text it moves or loses once more turns follow (Mistral v3), thinking that it
    removes even from an answer it ends with, and rows with tools in a form of their own. Ids are
    compared where no content holds special-token text (ours keeps it text on purpose) and no answer
    begins with white space (ours cuts there, because generation begins there).

    `mend` ends the message: what to do about a difference.

    Returns:
        Conversations that were compared; None where the tokenizer has no chat template.

    Raises:
        TemplateError: they differ; shows the first difference.
    """
    tokenizer = renderer.tokenizer
    if tokenizer.chat_template is None:
        return None
    compared = 0
    moved = False
    # The tokenizer's own template is held to what the rows need: it may refuse other dialogues.
    probes = _PROBES if isinstance(renderer.template, Template) else _PROBES[:1]
    for conversation in (*probes, *conversations):
        if not _comparable(renderer, conversation):
            continue
        try:
            theirs = _theirs(tokenizer, conversation, len(conversation.messages))
            first = _theirs(tokenizer, conversation, 1)
            last = _theirs(tokenizer, conversation, len(conversation.messages) - 1)
        except jinja2.TemplateError:
            continue
        if conversation.system is not None and not theirs.startswith(first):
            moved = True
            continue
        compared += 1
        difference = _difference(renderer, conversation, theirs, last)
        if difference is not None:
            raise TemplateError(f"{difference}\n{mend}")
    if moved:
        _LOG.warning(
            "the tokenizer's own chat template moves the system text once more turns follow; "
            "template %s keeps it where it is, so that every prompt is a prefix of what was "
            "trained", renderer.template.name,
        )  # fmt: skip
    return compared


def _comparable(renderer: Renderer, conversation: Conversation) -> bool:
    if conversation.tools or any(m.tool for m in conversation.messages):
        return False
    template = renderer.template
    if not isinstance(template, Template) or template.think is None:
        return True
    if template.thinking == "keep" and len(conversation.messages) > 2:
        return False
    said = [m.content for m in conversation.messages if m.role == "assistant"]
    return bool(template.think_block) or not any(template.think[1] in text for text in said)


def _theirs(tokenizer: Tokenizer, conversation: Conversation, messages: int) -> str:
    """The tokenizer's own rendering of the first turns; after a question it asks for an answer."""
    turns = conversation.messages[:messages]
    if conversation.system is not None:
        turns = (Message("system", conversation.system), *turns)  # type: ignore[arg-type]
    return tokenizer.render_chat([{"role": m.role, "content": m.content} for m in turns],
                                 add_generation_prompt=turns[-1].role == "user")  # fmt: skip


def _difference(renderer: Renderer, conversation: Conversation, theirs: str,
                prompt: str) -> str | None:  # fmt: skip
    tokenizer, template = renderer.tokenizer, renderer.template
    parts = template.plan(conversation)
    own = {BOS: tokenizer.bos_token or "", EOS: tokenizer.eos_token or ""}
    ours = "".join(own.get(p.text, p.text) if p.kind == "marker" else p.text for p in parts)
    # The first Llama 3 releases open an answer even where none was asked for; GLM 4 ends an answer
    # with the next question's marker and so leaves out the last.
    header = template.header if isinstance(template, Template) else ""
    end = own.get(template.end, template.end)
    if ours not in (theirs, theirs + end) and ours + header != theirs:
        return _shown(renderer, conversation, ours, theirs, "text")
    if not ours.startswith(prompt):
        return _shown(renderer, conversation, ours, prompt, "prompt of the last answer")
    if _cut_on_purpose(renderer, conversation, parts):
        return None
    ids = list(renderer.render(conversation).ids)
    whole = _encode(renderer, ours)
    if ids != whole and not _answers_begin_otherwise(renderer, conversation):
        return _shown(renderer, conversation, ours, ours, "token ids", ids)
    return None


def _cut_on_purpose(renderer: Renderer, conversation: Conversation, parts: Sequence[Part]) -> bool:
    tokenizer, template = renderer.tokenizer, renderer.template
    contents = [m.content for m in conversation.messages] + [conversation.system or ""]
    specials = [tokenizer.token(i) for i in tokenizer.special_ids]
    if any(special in content for special in specials for content in contents):
        return True
    lead = template.answer.partition(CONTENT)[0] if isinstance(template, Template) else ""
    return any(p.kind == "answer" and p.text.removeprefix(lead)[:1].isspace() for p in parts)


def _answers_begin_otherwise(renderer: Renderer, conversation: Conversation) -> bool:
    """Whether only answers can differ: they begin with a blank behind text (DeepSeek 2, Llama 2),
    which some tokenizers cut otherwise where generation begins than inside a running text."""
    template = renderer.template
    if not isinstance(template, Template) or not template.answer[0].isspace():
        return False
    if template.header.endswith(template.markers):
        return False
    asked = dataclasses.replace(conversation, messages=conversation.messages[:1])
    own = {BOS: renderer.tokenizer.bos_token or "", EOS: renderer.tokenizer.eos_token or ""}
    text = "".join(own.get(p.text, p.text) for p in template.plan(asked))
    return renderer.prompt(asked) == _encode(renderer, text)


def _encode(renderer: Renderer, text: str) -> list[int]:
    return renderer.tokenizer.encode_whole(text)


def _shown(renderer: Renderer, conversation: Conversation, ours: str, theirs: str, what: str,
           our_ids: list[int] | None = None) -> str:  # fmt: skip
    name = renderer.template.name
    ids = _encode(renderer, ours) if our_ids is None else our_ids
    their_ids = _encode(renderer, theirs)
    pairs = zip(ids, their_ids, strict=False)
    shorter = min(len(ids), len(their_ids))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    question = conversation.messages[0].content[:40]
    return (f"template {name} differs from the tokenizer's own chat template ({what}), first at "
            f"token {at} of the conversation that begins with {question!r}:\n"
            f"  {name:<10} {_around(renderer, ids, at)}\n"
            f"  tokenizer  {_around(renderer, their_ids, at)}")  # fmt: skip


def _around(renderer: Renderer, ids: Sequence[int], at: int) -> str:
    tokenizer = renderer.tokenizer
    here = f"{tokenizer.token(ids[at])!r} (id {ids[at]})" if at < len(ids) else "the end"
    before = tokenizer.decode(ids[max(0, at - _BEFORE) : at])
    return f"{here} in ...{before!r} + {tokenizer.decode(ids[at : at + _BEHIND])!r}..."
