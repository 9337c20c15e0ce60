"""Owns turning conversations into token ids and labels, for training and for generation alike.

What chat sends is by construction the prefix that training saw: both come from one plan of parts,
and an answer is always tokenized apart from what precedes it. It knows no file format and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mindspeed_llm.data.chat_template import BOS, CONTENT, EOS, ChatTemplate, Part, Template
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.shapes import IGNORE, Shape, Shapes, Span
from mindspeed_llm.data.tokenizer import CONTEXTS, Context, Tokenizer
from mindspeed_llm.errors import TemplateError

_CACHED_TEXTS = 4096
_CACHED_LENGTH = 64


class Rendered(NamedTuple):
    """Token ids of a conversation; `labels[i]` is `ids[i]` where trained, else -100 (unshifted).

    With the templates of `--template-compat mindspeed` alone a label can be eos over another token.
    """

    ids: list[int]
    labels: list[int]


class Renderer:
    """Renders conversations with one tokenizer and one chat template.

    Attributes:
        end_id: id of the end-of-turn token; None where the template has none.
        stop_ids: ids that end an answer at generation: end-of-turn, then the eos tokens.

    Raises:
        TemplateError: a marker of the template is not exactly one token of the tokenizer, or the
            tokenizer has no eos token and the template ends answers with it.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.template = template
        if isinstance(template, Template):
            template = template.with_tokens(tokenizer.token(i) for i in tokenizer.special_ids)
        self._written = template  # the template as this tokenizer's tokens spell it
        special = template.written if isinstance(template, Template) else template.markers
        self.tokenizer = tokenizer.guarding(special)
        self._marker_ids = {m: tokenizer.token_id(m) for m in template.markers}
        for marker, index in ((BOS, tokenizer.bos_id), (EOS, tokenizer.eos_id)):
            if index is not None:
                self._marker_ids[marker] = index
        self.end_id = self._marker(template.end) if template.end else None
        ends = () if self.end_id is None else (self.end_id,)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*ends, *tokenizer.eos_ids)))
        self._cache: dict[Context, dict[str, list[int]]] = {c: {} for c in CONTEXTS}
        strips = not set(template.markers).isdisjoint(self.tokenizer.strips) or any(
            text in self.tokenizer.strips for text in (tokenizer.bos_token, tokenizer.eos_token)
        )
        self._shapes = Shapes(template, lambda talk: self._spans(template.plan(talk), ()),
                              lambda text, where: self.tokenizer.encode_texts([text], where)[0],
                              strips)  # fmt: skip

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and labels of a finished conversation, as training sees them."""
        return self.render_many([conversation])[0]

    def render_many(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """`render` of many conversations; their texts are encoded in one batch."""
        plans: list[tuple[Shape, list[str]] | list[Span]] = []
        missing: dict[Context, dict[str, None]] = {}
        for conversation in conversations:
            found = self._shapes.find(conversation)
            if found is None:
                spans = self._spans(self._written.plan(conversation), ())
                self._seek(spans, missing)
                plans.append(spans)
                continue
            shape, contents = found
            texts = shape.texts(contents)
            for slot, text in zip(shape.slots, texts, strict=True):
                if text not in self._cache[slot.context]:
                    missing.setdefault(slot.context, {})[text] = None
            plans.append((shape, texts))
        self._encode(missing)
        rows = [self._filled(*plan) if isinstance(plan, tuple) else self._assemble(plan)
                for plan in plans]  # fmt: skip
        for context, cache in self._cache.items():
            if len(cache) > _CACHED_TEXTS:
                short = {text: ids for text, ids in cache.items() if len(text) <= _CACHED_LENGTH}
                self._cache[context] = short if len(short) <= _CACHED_TEXTS else {}
        return rows

    def prompt(
        self, conversation: Conversation, answers: Sequence[Sequence[int]] = ()
    ) -> list[int]:
        """Ids that end with the assistant's header, ready for generation.

        Args:
            conversation: turns up to and including the user's that is to be answered.
            answers: ids of the first answers as they were generated, without end-of-turn token;
                they are used as they are instead of encoding their text again, except where the
                template shows an earlier answer otherwise (without its thinking).
        """
        if not conversation.is_open:
            raise TemplateError("a prompt needs a conversation that ends with the user's turn")
        spans = self._spans(self._written.plan(conversation), answers)
        return self._assemble_alone(spans).ids

    def without_stop(self, generated: Sequence[int]) -> list[int]:
        """`generated` up to its first stop id, which is left out."""
        stops = set(self.stop_ids)
        for index, token in enumerate(generated):
            if token in stops:
                return list(generated[:index])
        return list(generated)

    def said(self, generated: Sequence[int]) -> str:
        """Text of a generated answer without what the template writes around it (a blank)."""
        text = self.tokenizer.decode(generated, skip_special_tokens=True)
        before, _, behind = self.template.answer.partition(CONTENT)
        return text.removeprefix(before).removesuffix(behind)

    def _spans(self, parts: Sequence[Part], answers: Sequence[Sequence[int]]) -> list[Span]:
        row = _Row(self.tokenizer.strips)
        answered = 0
        for part in parts:
            if part.kind == "marker":
                label = self._marker(part.label) if part.label else None
                row.marker(part, self._marker(part.text), label)
            elif part.kind == "cut":
                row.cut()
            else:
                answered += part.kind == "answer"
                if part.kind == "answer" and part.verbatim and answered <= len(answers):
                    row.known(answers[answered - 1], part.trained)
                else:
                    row.text(part)
        row.flush()
        return row.spans

    def _marker(self, text: str) -> int:
        if text in self._marker_ids:
            return self._marker_ids[text]
        if text in (BOS, EOS):
            name = "BOS" if text == BOS else "EOS"
            raise TemplateError(
                f"template {self.template.name} writes a{'n' * (text == EOS)} {name} token and "
                f"this tokenizer has none ({name.lower()}_token in tokenizer_config.json)"
            )
        index = self.tokenizer.token_id(text)
        self._marker_ids[text] = index
        return index

    def _seek(self, spans: Iterable[Span], missing: dict[Context, dict[str, None]]) -> None:
        for span in spans:
            if span.ids is None and span.text not in self._cache[span.context]:
                missing.setdefault(span.context, {})[span.text] = None

    def _encode(self, missing: Mapping[Context, Mapping[str, None]]) -> None:
        for context, texts in missing.items():
            encoded = self.tokenizer.encode_texts(list(texts), context)
            self._cache[context].update(zip(texts, encoded, strict=True))

    def _filled(self, shape: Shape, texts: Sequence[str]) -> Rendered:
        pieces = [self._cache[slot.context][text]
                  for slot, text in zip(shape.slots, texts, strict=True)]  # fmt: skip
        ids, labels = shape.fill(pieces)
        if labels:
            labels[0] = IGNORE  # nothing in the row predicts its first token
        return Rendered(ids, labels)

    def _assemble_alone(self, spans: Sequence[Span]) -> Rendered:
        missing: dict[Context, dict[str, None]] = {}
        self._seek(spans, missing)
        self._encode(missing)
        return self._assemble(spans)

    def _assemble(self, spans: Sequence[Span]) -> Rendered:
        ids: list[int] = []
        labels: list[int] = []
        for span in spans:
            piece = self._cache[span.context][span.text] if span.ids is None else span.ids
            ids += piece
            if span.label is not None:
                labels.append(span.label)
            elif span.marks:
                labels += self._partly(span, piece)
            else:
                labels += piece if span.trained else [IGNORE] * len(piece)
        if labels:
            labels[0] = IGNORE  # nothing in the row predicts its first token
        return Rendered(ids, labels)

    def _partly(self, span: Span, piece: Sequence[int]) -> list[int]:
        """Labels of a text of which some pieces are trained; a token across an edge is not."""
        spots = self.tokenizer.spots(span.text, span.context)
        return [token if start < stop and all(span.marks[start:stop]) else IGNORE
                for token, (start, stop) in zip(piece, spots, strict=True)]  # fmt: skip


class _Row:
    """Spans of one row: neighbouring texts become one, and each knows what it follows."""

    def __init__(self, strips: Mapping[str, tuple[bool, bool]]) -> None:
        self.spans: list[Span] = []
        self._strips = strips
        self._pending: list[Part] = []
        self._context: Context = "start"
        self._swallows = False  # the marker before takes white space that follows it

    def marker(self, part: Part, index: int, label: int | None) -> None:
        left, right = self._strips.get(part.text, (False, False))
        self.flush(left)
        self.spans.append(Span("", "marker", (index,), part.trained, label))
        self._context, self._swallows = "marker", right

    def text(self, part: Part) -> None:
        # An answer is generated apart from what precedes it, and ends where generation ends.
        if part.kind == "answer" or (self._pending and self._pending[0].kind == "answer"):
            self.flush()
        self._pending.append(part)

    def known(self, ids: Sequence[int], trained: bool) -> None:
        self.flush()
        self.spans.append(Span("", "text", ids, trained))
        self._context, self._swallows = "text", False

    def cut(self) -> None:
        self.flush()
        self._context, self._swallows = "start", False

    def flush(self, swallowed: bool = False) -> None:
        parts = [part for part in self._pending if part.text]
        self._pending = []
        text = "".join(part.text for part in parts)
        start = len(text) - len(text.lstrip()) if self._swallows else 0
        stop = len(text.rstrip()) if swallowed else len(text)
        if start >= stop:
            return
        mixed = len({part.trained for part in parts}) > 1
        marks = [part.trained for part in parts for _ in part.text] if mixed else []
        self.spans.append(Span(text[start:stop], self._context, None, parts[0].trained,
                                marks=tuple(marks[start:stop])))  # fmt: skip
        self._context, self._swallows = "text", False
