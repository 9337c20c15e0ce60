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
from mindspeed_llm.data.turns import Shortener, Turns


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
        # With one sample targets are chosen anew: the last answer left is then the last.
        one = len(samples) == 1
        limit = self.config.seq_length
        turns = tokens = 0
        made: list[tuple[Turns, Rendered]] = []
        for talk, row in samples:
            whole = Turns(item.whole) if one else Turns(talk, chosen=True)
            if limit is None or len(row.ids) <= limit:
                made.append((whole, row))
                continue
            shorter = self._shortener(limit).shorten(whole)
            turns += len(talk.messages)
            tokens += len(row.ids)
            if shorter is not None:
                turns -= len(shorter[0].conversation.messages)
                tokens -= len(shorter[1].ids)
                made.append(shorter)
        if not made or (tokens and self.config.truncation in ("drop", "error")):
            longest = max(len(row.ids) for _, row in samples)
            return RowError("(row)", f"{longest} tokens, more than --seq-length {limit}",
                            kind=OVER_LENGTH)  # fmt: skip
        outcome = TRUNCATED if tokens else REPAIRED if item.repairs else KEPT
        # Nothing is taken from packed rows any more.
        kept = () if self.config.pack else [whole for whole, _ in made]
        return Made([row for _, row in made], outcome, item.repairs, turns, tokens, kept)

    def _shortener(self, limit: int) -> Shortener:
        config = self.config
        return Shortener(self.renderer, config.truncation, limit, config.train_on,
                         config.train_on_inputs)  # fmt: skip
