"""Owns the ids of conversations by their shape: how many turns, which are trained, system or not.

Conversations of one shape differ in what their turns say and in nothing else, so the template's own
text is planned and encoded once a shape, and a conversation costs no more than its contents. What a
shape is comes from the renderer's plan of such a conversation; there is no second set of rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mindspeed_llm.data.chat_template import ChatTemplate, Template
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.tokenizer import Context

_OPEN, _CLOSE = "\ue0f4", "\ue0f5"  # private use: they stand for contents while a shape is made
_PLACE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_SHAPES = 4096  # kept; then they are made again
IGNORE = -100


class Span(NamedTuple):
    """Text to encode in one piece in its context, or ids that are already known.

    `marks` says of each character whether it is trained, where only some are; what is encoded
    together must not depend on what is trained, because a prompt knows nothing of that.
    """

    text: str
    context: Context
    ids: Sequence[int] | None
    trained: bool
    label: int | None = None
    marks: tuple[bool, ...] = ()


class Slot(NamedTuple):
    """A text to encode: content number `place` (0 is the system text) between two texts.

    `more` are further contents, each with the text behind it.
    """

    before: str
    place: int
    behind: str
    context: Context
    trained: bool
    more: tuple[tuple[int, str], ...] = ()


class Shape(NamedTuple):
    """`ids[i]` and `labels[i]` stand before slot i, the last ones behind the last slot."""

    slots: tuple[Slot, ...]
    ids: tuple[list[int], ...]
    labels: tuple[list[int], ...]

    def texts(self, contents: Sequence[str]) -> list[str]:
        """The texts to encode, in order."""
        texts = []
        for before, place, behind, _, _, more in self.slots:
            text = before + contents[place] + behind
            for further, end in more:
                text += contents[further] + end
            texts.append(text)
        return texts

    def fill(self, pieces: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """Ids and labels of the whole, given the ids of its texts."""
        ids, labels = self.ids[0].copy(), self.labels[0].copy()
        for number, (slot, piece) in enumerate(zip(self.slots, pieces, strict=True), 1):
            ids += piece
            labels += piece if slot.trained else [IGNORE] * len(piece)
            ids += self.ids[number]
            labels += self.labels[number]
        return ids, labels


class Shapes:
    """Shapes of one template and tokenizer, made as they are met.

    Args:
        template: as the renderer has it.
        plan: spans of a conversation, as the renderer makes them.
        encode: ids of a text in its context.
        strips: whether any marker swallows white space beside it.
    """

    def __init__(self, template: ChatTemplate, plan: Callable[[Conversation], list[Span]],
                 encode: Callable[[str, Context], list[int]], strips: bool) -> None:  # fmt: skip
        # A template whose text depends on what the turns say has no shapes.
        known = isinstance(template, Template) and template.think is None
        self._template = template if known and isinstance(template, Template) else None
        self._plan, self._encode, self._strips = plan, encode, strips
        self._made: dict[tuple[object, ...], Shape | None] = {}

    def find(self, conversation: Conversation) -> tuple[Shape, list[str]] | None:
        """The shape of a conversation and its contents; None where it has to be planned itself."""
        template, system = self._template, conversation.system
        if template is None or conversation.tools or any([m.tool for m in conversation.messages]):
            return None
        contents = [m.content for m in conversation.messages]
        if template.trim:
            contents = [text.strip() for text in contents]
        elif template.trim_answer:
            contents[1::2] = [text.strip() for text in contents[1::2]]
        if system is not None:
            if template.trim_merged and not template.system:
                return None
            system = system.strip() if template.trim_system else system
        said = [system, *contents] if system else contents
        if not all(said) or (self._strips and any(t[0].isspace() or t[-1].isspace() for t in said)):
            return None
        key = (None if system is None else bool(system), conversation.train_inputs,
               tuple([m.train for m in conversation.messages]))  # fmt: skip
        if key not in self._made:
            if len(self._made) >= _SHAPES:
                self._made.clear()
            self._made[key] = self._make(conversation, system)
        shape = self._made[key]
        return None if shape is None else (shape, [system or "", *contents])

    def _make(self, conversation: Conversation, system: str | None) -> Shape | None:
        blank = tuple(Message(m.role, _blank(number), m.train, m.loss)
                      for number, m in enumerate(conversation.messages, 1))  # fmt: skip
        spans = self._plan(Conversation(blank, _blank(0) if system else system,
                                        conversation.train_inputs))  # fmt: skip
        slots: list[Slot] = []
        ids: list[list[int]] = [[]]
        labels: list[list[int]] = [[]]
        for span in spans:
            pieces = _PLACE.split(span.text)
            if span.marks:  # where only a part of a text is trained, the text itself says which
                return None
            if len(pieces) > 1:
                places = [int(place) for place in pieces[1::2]]
                more = tuple(zip(places[1:], pieces[4::2], strict=True))
                slots.append(Slot(pieces[0], places[0], pieces[2], span.context, span.trained,
                                  more))  # fmt: skip
                ids.append([])
                labels.append([])
                continue
            known = self._encode(span.text, span.context) if span.ids is None else span.ids
            ids[-1] += known
            trained = known if span.trained else [IGNORE] * len(known)
            labels[-1] += trained if span.label is None else [span.label] * len(known)
        return Shape(tuple(slots), tuple(ids), tuple(labels))


def _blank(number: int) -> str:
    return f"{_OPEN}{number}{_CLOSE}"
