"""Owns a running dialogue as chat needs it: generated ids are kept, old turns can be left out.

It knows no model and no terminal: it takes and gives texts and token ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.errors import TemplateError


@dataclass
class Turn:
    """What the user said and what came of it.

    Attributes:
        user: the user's text.
        answer: generated ids without the end-of-turn token; None until there is an answer.
        text: text of `answer`.
        note: what the caller keeps with the answer.
    """

    user: str
    answer: list[int] | None = None
    text: str = ""
    note: Any = None


@dataclass
class Dialogue:
    """Turns so far. `ask`, then `answer`, alternately.

    The prompt of a later turn begins with the prompt of the earlier one and the generated ids, so
    a KV cache stays valid as long as no turn is left out. Turns that are left out of prompts stay
    known: taking turns back brings them in again.

    Args:
        renderer: the renderer training used.
        system: system text; None for the template's default, "" for an empty one. It may change
            between turns.
    """

    renderer: Renderer
    system: str | None = None
    _turns: list[Turn] = field(default_factory=list)
    _too_long: int = 0  # oldest turns left out since the prompt was too long
    _too_many: int = 0  # oldest turns left out since there are too many

    @property
    def turns(self) -> int:
        """Turns in the prompt, the one being answered included."""
        return len(self._turns) - self.first

    @property
    def first(self) -> int:
        """Place of the first turn that is in the prompt; as many are left out."""
        return max(self._too_long, self._too_many)

    @property
    def history(self) -> Sequence[Turn]:
        """All turns, also those that are left out of prompts."""
        return tuple(self._turns)

    @property
    def is_open(self) -> bool:
        """Whether the last turn waits for its answer."""
        return bool(self._turns) and self._turns[-1].answer is None

    def ask(self, text: str) -> list[int]:
        """Add the user's turn; returns the prompt's ids, ending with the answer's header."""
        if self.is_open:
            raise TemplateError("the last turn has no answer yet")
        self._turns.append(Turn(text))
        return self.prompt()

    def answer(self, generated: Sequence[int], note: Any = None) -> str:
        """Keep the generated ids (with or without a stop id at their end) and the caller's note;
        returns their text."""
        if not self.is_open:
            raise TemplateError("there is no turn to answer")
        turn = self._turns[-1]
        turn.answer, turn.note = self.renderer.without_stop(generated), note
        turn.text = self.renderer.said(turn.answer)
        return turn.text

    def take_back(self) -> None:
        """Forget the last user turn, answered or not (an interrupted answer, a repeated turn)."""
        if self._turns:
            self._turns.pop()
            last = max(len(self._turns) - 1, 0)  # the turn before is in the prompt again
            self._too_long, self._too_many = min(self._too_long, last), min(self._too_many, last)

    def reopen(self) -> Turn:
        """Forget the last answer, so that another can be given; returns the turn as it was.

        Raises:
            TemplateError: there is no answered turn.
        """
        if not self._turns or self.is_open:
            raise TemplateError("there is no answer yet")
        turn = self._turns[-1]
        self._turns[-1] = Turn(turn.user)
        return turn

    def prompt(self) -> list[int]:
        """Ids of everything in the prompt, ending with the header of the answer that is due."""
        if not self.is_open:
            raise TemplateError("there is no turn to answer")
        return self._prompt(self.first)

    def _prompt(self, first: int) -> list[int]:
        texts: list[str] = []
        turns = self._turns[first:]
        for turn in turns:
            texts += [turn.user] if turn.answer is None else [turn.user, turn.text]
        kept = [turn.answer for turn in turns if turn.answer is not None]
        return self.renderer.prompt(Conversation.of(*texts, system=self.system), kept)

    def keep_last(self, turns: int) -> int:
        """Leave out all but the last `turns` turns; the system text stays. Returns how many more
        than before are left out."""
        before = self.first
        self._too_many = max(0, len(self._turns) - max(turns, 0))
        return max(0, self.first - before)

    def fit(self, longest_prompt: int, target: int | None = None) -> int:
        """Leave out the oldest whole turns if the prompt has more than `longest_prompt` tokens.

        Args:
            longest_prompt: in tokens.
            target: once turns must go, so many go that the prompt has at most this many tokens,
                as far as the last turn allows; default: `longest_prompt`. Each time turns go, the
                rest has to be read anew; a lower target makes that rare.

        Returns:
            How many turns were left out.

        Raises:
            TemplateError: the last turn alone is longer; nothing is left out then.
        """
        size = len(self.prompt())
        if size <= longest_prompt:
            return 0
        before, last = self.first, len(self._turns) - 1
        first = before
        while first < last and size > (longest_prompt if target is None else target):
            first += 1
            size = len(self._prompt(first))
        if size > longest_prompt:
            raise TemplateError(f"this turn alone is {size} tokens long; {longest_prompt} fit")
        self._too_long = first
        return first - before

    def restore(self, turns: Sequence[Turn], left_out: int = 0) -> None:
        """Take over answered turns of another time, the oldest `left_out` without a place in the
        prompt."""
        assert all(turn.answer is not None for turn in turns)
        self._turns = [dataclasses.replace(turn) for turn in turns]
        self._too_long, self._too_many = min(left_out, len(turns)), 0

    def clear(self) -> None:
        """Start anew; the system text stays."""
        self.restore(())
