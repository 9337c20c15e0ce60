"""Owns turning conversations into token ids and labels, for training and for generation alike.

What chat sends is by construction the prefix that training saw: both come from one plan of parts,
and an answer is always tokenized apart from what precedes it. It knows no file format and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.templates import BOS, ChatTemplate, Part
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.errors import TemplateError

IGNORE = -100
_CACHED_TEXTS = 4096
_CACHED_LENGTH = 64


class Rendered(NamedTuple):
    """Token ids of a conversation; `labels[i]` is `ids[i]` where trained, else -100 (unshifted)."""

    ids: list[int]
    labels: list[int]


class _Span(NamedTuple):
    """Text to encode in one piece, a marker's id, or ids that are already known.

    `marks` lists (characters, trained) of the pieces of a text of which only some are trained; what
    is encoded together must not depend on what is trained, because a prompt knows nothing of that.
    """

    text: str
    ids: Sequence[int] | None
    trained: bool
    marks: tuple[tuple[int, bool], ...] = ()


class Renderer:
    """Renders conversations with one tokenizer and one chat template.

    Attributes:
        end_id: id of the end-of-turn token.
        stop_ids: ids that end an answer at generation: end-of-turn, then the eos tokens.

    Raises:
        TemplateError: a marker of the template is not exactly one token of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.template = template
        self.tokenizer = tokenizer.guarding(template.markers)
        self._marker_ids = {m: tokenizer.token_id(m) for m in template.markers}
        if tokenizer.bos_id is not None:
            self._marker_ids[BOS] = tokenizer.bos_id
        self.end_id = self._marker_ids[template.end]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((self.end_id, *tokenizer.eos_ids)))
        self._cache: dict[str, list[int]] = {}

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and labels of a finished conversation, as training sees them."""
        return self.render_many([conversation])[0]

    def render_many(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """`render` of many conversations; their texts are encoded in one batch."""
        plans = [self._spans(self.template.plan(c), ()) for c in conversations]
        self._encode(span.text for plan in plans for span in plan if span.ids is None)
        rows = [self._assemble(plan) for plan in plans]
        if len(self._cache) > _CACHED_TEXTS:
            self._cache = {t: i for t, i in self._cache.items() if len(t) <= _CACHED_LENGTH}
            if len(self._cache) > _CACHED_TEXTS:
                self._cache.clear()
        return rows

    def prompt(
        self, conversation: Conversation, answers: Sequence[Sequence[int]] = ()
    ) -> list[int]:
        """Ids that end with the assistant's header, ready for generation.

        Args:
            conversation: turns up to and including the user's that is to be answered.
            answers: ids of the first answers as they were generated, without end-of-turn token;
                they are used as they are instead of encoding their text again.
        """
        if not conversation.is_open:
            raise TemplateError("a prompt needs a conversation that ends with the user's turn")
        spans = self._spans(self.template.plan(conversation), answers)
        self._encode(span.text for span in spans if span.ids is None)
        return self._assemble(spans).ids

    def without_stop(self, generated: Sequence[int]) -> list[int]:
        """`generated` up to its first stop id, which is left out."""
        stops = set(self.stop_ids)
        for index, token in enumerate(generated):
            if token in stops:
                return list(generated[:index])
        return list(generated)

    def _spans(self, parts: Sequence[Part], answers: Sequence[Sequence[int]]) -> list[_Span]:
        spans: list[_Span] = []
        answered = 0
        pending: list[Part] = []  # texts that are encoded in one piece
        for part in parts:
            if pending and part.kind != "text":
                spans.append(_joined(pending))
                pending = []
            if part.kind == "marker":
                spans.append(_Span("", (self._marker(part.text),), part.trained))
                continue
            if part.kind == "answer":
                answered += 1
                if answered <= len(answers):
                    spans.append(_Span("", answers[answered - 1], part.trained))
                    continue
            pending.append(part)
        if pending:
            spans.append(_joined(pending))
        return spans

    def _marker(self, text: str) -> int:
        if text in self._marker_ids:
            return self._marker_ids[text]
        if text == BOS:
            raise TemplateError(
                f"template {self.template.name} begins with a BOS token and this tokenizer has "
                "none (bos_token in tokenizer_config.json)"
            )
        index = self.tokenizer.token_id(text)
        self._marker_ids[text] = index
        return index

    def _encode(self, texts: Iterable[str]) -> None:
        missing = list(dict.fromkeys(t for t in texts if t not in self._cache))
        if missing:
            self._cache.update(zip(missing, self.tokenizer.encode_texts(missing), strict=True))

    def _assemble(self, spans: Sequence[_Span]) -> Rendered:
        ids: list[int] = []
        labels: list[int] = []
        for span in spans:
            piece = self._cache[span.text] if span.ids is None else span.ids
            ids += piece
            if span.marks:
                labels += self._partly(span, piece)
            else:
                labels += piece if span.trained else [IGNORE] * len(piece)
        return Rendered(ids, labels)

    def _partly(self, span: _Span, piece: Sequence[int]) -> list[int]:
        """Labels of a text of which some pieces are trained; a token across an edge is not."""
        trained = [mark for length, mark in span.marks for _ in range(length)]
        spots = self.tokenizer.spots(span.text)
        return [token if start < stop and all(trained[start:stop]) else IGNORE
                for token, (start, stop) in zip(piece, spots, strict=True)]  # fmt: skip


def _joined(parts: Sequence[Part]) -> _Span:
    text = "".join(part.text for part in parts)
    marks = tuple((len(part.text), part.trained) for part in parts if part.text)
    if len({trained for _, trained in marks}) < 2:
        return _Span(text, None, parts[0].trained if not marks else marks[0][1])
    return _Span(text, None, False, marks)
