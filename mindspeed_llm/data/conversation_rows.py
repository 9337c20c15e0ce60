"""Owns the way of one row from its columns to token ids: read, mend, choose targets, shorten.

It knows no file format and no process; each step is a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.messages import Conversation, RowError
from mindspeed_llm.data.render import IGNORE, Rendered, Renderer
from mindspeed_llm.data.report import KEPT, OVER_LENGTH, REPAIRED, TRUNCATED, Made
from mindspeed_llm.data.roles import repair
from mindspeed_llm.data.sources import Source
from mindspeed_llm.data.targets import choose_targets
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.data.truncation import shorten


class Taken(NamedTuple):
    """A conversation that can be trained; `whole` is it before targets were chosen."""

    conversation: Conversation
    whole: Conversation
    repairs: tuple[str, ...]


@dataclass
class ConversationRows:
    """Makes rows of conversations, as `RowMaker` wants it."""

    source: Source
    renderer: Renderer
    config: PreprocessConfig

    @property
    def template(self) -> str:
        """Name of the chat template."""
        return self.renderer.template.name

    @property
    def tokenizer(self) -> Tokenizer:
        """See `RowMaker`."""
        return self.renderer.tokenizer

    def fingerprint(self) -> str:
        """Hash of the chat template."""
        return self.renderer.template.fingerprint()

    def take(self, row: Mapping[str, Any]) -> Taken:
        """See `RowMaker.take`."""
        whole: Conversation = self.source.read(row)
        repairs: tuple[str, ...] = ()
        if self.config.role_order == "repair":
            whole, repairs = repair(whole)
        conversation = self._targets(whole)
        conversation.check_trainable()
        return Taken(conversation, whole, repairs)

    def _targets(self, conversation: Conversation) -> Conversation:
        return choose_targets(conversation, self.config.train_on, self.config.train_on_inputs)

    def make(self, items: Sequence[Taken]) -> list[Made | RowError]:
        """See `RowMaker.make`."""
        samples = [self.renderer.template.expand(item.conversation) for item in items]
        rows = iter(self.renderer.render_many([talk for talks in samples for talk in talks]))
        return [self._row(item, [(talk, next(rows)) for talk in talks])
                for item, talks in zip(items, samples, strict=True)]  # fmt: skip

    def _row(
        self, item: Taken, samples: Sequence[tuple[Conversation, Rendered]]
    ) -> Made | RowError:
        # Where thinking is stripped, the only target may be an answer that does not stand as such.
        samples = [(talk, row) for talk, row in samples if any(i != IGNORE for i in row.labels)]
        if not samples:
            return RowError("messages", "no token is a training target", kind="no target")
        limit = self.config.seq_length
        if limit is None or all(len(row.ids) <= limit for _, row in samples):
            outcome = REPAIRED if item.repairs else KEPT
            return Made([row for _, row in samples], outcome, item.repairs)
        pieces: list[Rendered] = []
        turns = tokens = 0
        one = len(samples) == 1
        for talk, row in samples:
            if len(row.ids) > limit:
                # With one sample targets are chosen anew: the last answer left is then the last.
                shorter = self._shorten(item.whole if one else talk, limit, anew=one)
                turns += len(talk.messages) - (len(shorter.messages) if shorter else 0)
                tokens += len(row.ids)
                if shorter is None:
                    continue
                row = self.renderer.render(shorter)
                tokens -= len(row.ids)
            pieces.append(row)
        if not pieces or self.config.truncation in ("drop", "error"):
            longest = max(len(row.ids) for _, row in samples)
            return RowError("(row)", f"{longest} tokens, more than --seq-length {limit}",
                            kind=OVER_LENGTH)  # fmt: skip
        return Made(pieces, TRUNCATED, item.repairs, turns, tokens)

    def _shorten(self, conversation: Conversation, limit: int, *,
                 anew: bool) -> Conversation | None:  # fmt: skip
        shorter = shorten(conversation, self.config.truncation, limit, self._length)
        if shorter is None:
            return None
        if anew:
            shorter = self._targets(shorter)
        return shorter if any(shorter.is_target(m) for m in shorter.messages) else None

    def _length(self, conversation: Conversation) -> int:
        return len(self.renderer.render(conversation).ids)
