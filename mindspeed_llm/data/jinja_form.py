"""Owns writing a chat template of the table in the language of Hugging Face's tokenizers, for
models whose tokenizer has none. It knows no tokenizer and no file."""

from __future__ import annotations

import json
import re

from mindspeed_llm.data.chat_template import BOS, CONTENT, EOS, Template

_PLACE = re.compile(f"({re.escape(BOS)}|{re.escape(EOS)}|{re.escape(CONTENT)})")
_NAMES = {BOS: "bos_token", EOS: "eos_token", CONTENT: "text"}


def as_jinja(template: Template) -> str | None:
    """The template as `apply_chat_template` reads it, or None where Jinja could not say the same.

    That is so where earlier answers are shown otherwise than generated (thinking), and where forms
    are tokenized apart: a text does not say where one ends.
    """
    if template.think is not None or template.apart or template.eos_label:
        return None
    trim = "|trim" if template.trim else ""
    early = "" if template.trim_merged else trim
    question = _form(template.user)
    if template.first_user:
        question = f"(({_form(template.first_user)}) if loop.first else ({question}))"
    default = "none" if template.default_system is None else json.dumps(template.default_system)
    given = "messages[0].content" + ("|trim" if template.trim_system else "")
    if not template.empty_system:
        given = f"({given} or {default})"
    lead = '""' if template.system else _form(template.lead)
    rows = [
        '{%- if messages[0].role == "system" %}',
        f"{{%- set text = {given} %}}{{%- set turns = messages[1:] %}}",
        "{%- else %}",
        f"{{%- set text = {default} %}}{{%- set turns = messages %}}",
        "{%- endif %}",
        f"{{{{- {_form(template.prefix)} }}}}",
        f'{{%- set lead = "" if text is none else {lead} %}}',
        f"{{{{- {_form(template.system)} if text is not none }}}}" if template.system else "",
        "{%- for message in turns %}",
        '{%- if message.role == "user" %}',
        f'{{%- set text = ((lead if loop.first else "") + (message.content{early}))'
        f"{trim if template.trim_merged else ''} %}}",
        f"{{{{- {question} }}}}",
        '{%- elif message.role == "assistant" %}',
        f"{{%- set text = message.content{'|trim' if template.trim_answer else trim} %}}",
        f"{{{{- {_form(template.header)} }}}}",
        f"{{{{- {_form(template.answer)} }}}}",
        f"{{{{- {_form(template.end + template.after)} }}}}",
        "{%- else %}",
        '{{- raise_exception("this template knows the roles system (first), user, assistant") }}',
        "{%- endif %}",
        "{%- endfor %}",
        f"{{%- if add_generation_prompt %}}{{{{- {_form(template.header)} }}}}",
        f'{{%- elif messages[-1].role == "assistant" %}}{{{{- {_form(template.tail)} }}}}',
        "{%- endif %}",
    ]
    return "\n".join(row for row in rows if row) + "\n"


def _form(form: str) -> str:
    """A form as a Jinja expression: its own text quoted, its places by name."""
    pieces = [_NAMES.get(piece) or json.dumps(piece, ensure_ascii=False)
              for piece in _PLACE.split(form) if piece]  # fmt: skip
    return "(" + " + ".join(pieces or ['""']) + ")"
