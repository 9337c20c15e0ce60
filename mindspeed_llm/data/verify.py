"""Owns comparing what the renderer makes with the tokenizer's own chat template.

It stops at the first difference and shows it. It knows no file format.
"""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import BOS, Template
from mindspeed_llm.errors import TemplateError

_PROBE = Conversation.of("Hello.", "Hi, how are you?", "Well.\n\nAnd you?", "Very well.")
_SHOWN = 60
_MEND = ("Choose the model's own --prompt-type or --hf-chat-template; if the difference is wanted: "
         "--no-verify-template")  # fmt: skip


def verify_template(
    renderer: Renderer, conversations: Sequence[Conversation] = (), *, mend: str = _MEND
) -> int | None:
    """Compare the renderer's output with `apply_chat_template`, text and token ids.

    With the tokenizer's own template the text is the same by construction; the ids need not be,
    where a tokenizer changes a text that it gets in pieces (one that puts a blank before each).
    A dialogue of two turns is always among what is compared.

    Rows that the tokenizer's template refuses (Gemma 1 and 2 refuse a system text) are passed over.
    Ids are compared where no content holds special-token text (ours keeps it text on purpose) and
    no answer begins with white space (ours cuts there, because generation begins there).

    `mend` ends the message: what to do about a difference.

    Returns:
        Conversations that were compared; None where the tokenizer has no chat template.

    Raises:
        TemplateError: they differ; shows the first difference.
    """
    hf = renderer.tokenizer.hf
    if hf is None or not hf.chat_template:
        return None
    compared = 0
    for conversation in (_PROBE, *conversations):
        system = [] if conversation.system is None else [("system", conversation.system)]
        turns = system + [(m.role, m.content) for m in conversation.messages]
        try:
            theirs = hf.apply_chat_template([{"role": r, "content": c} for r, c in turns],
                                            tokenize=False)  # fmt: skip
        except jinja2.TemplateError:
            continue
        compared += 1
        difference = _difference(renderer, conversation, theirs)
        if difference is not None:
            raise TemplateError(f"{difference}\n{mend}")
    return compared


def _difference(renderer: Renderer, conversation: Conversation, theirs: str) -> str | None:
    tokenizer, template = renderer.tokenizer, renderer.template
    parts = template.plan(conversation)
    bos = tokenizer.bos_token or ""
    ours = "".join(bos if p.kind == "marker" and p.text == BOS else p.text for p in parts)
    # The first Llama 3 releases open an answer even where none was asked for.
    header = template.header if isinstance(template, Template) else ""
    if theirs != ours and theirs != ours + header:
        return _shown(template.name, ours, theirs, "text")
    contents = [m.content for m in conversation.messages] + [conversation.system or ""]
    specials = [tokenizer.token(i) for i in tokenizer.special_ids]
    if any(special in content for special in specials for content in contents):
        return None
    if any(p.kind == "answer" and p.text[:1].isspace() for p in parts):
        return None
    our_ids = renderer.render(conversation).ids
    their_ids = list(tokenizer.hf.backend_tokenizer.encode(ours, add_special_tokens=False).ids)
    if our_ids != their_ids:
        tokens = [[tokenizer.token(i) for i in ids] for ids in (our_ids, their_ids)]
        return _shown(template.name, *tokens, "token")
    return None


def _shown(name: str, ours: Sequence[str], theirs: Sequence[str], unit: str) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    start = max(0, at - _SHOWN // 3)
    return (f"template {name} differs from the tokenizer's own chat template at {unit} {at}:\n"
            f"  {name:<10} ...{ours[start : at + _SHOWN]!r}\n"
            f"  tokenizer  ...{theirs[start : at + _SHOWN]!r}")  # fmt: skip
