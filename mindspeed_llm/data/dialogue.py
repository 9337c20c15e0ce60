"""Owns a running dialogue as chat needs it: generated ids are kept, old turns can be dropped.

It knows no model and no terminal: it takes and gives texts and token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.errors import TemplateError


@dataclass
class _Turn:
    user: str
    answer: list[int] | None = None  # generated ids without the end-of-turn token
    text: str = ""


@dataclass
class Dialogue:
    """Turns so far. `ask`, then `answer`, alternately.

    The prompt of a later turn begins with the prompt of the earlier one and the generated ids, so
    a KV cache stays valid as long as no turn is dropped.

    Args:
        renderer: the renderer training used.
        system: system text; None for the template's default, "" for an empty one.
    """

    renderer: Renderer
    system: str | None = None
    _turns: list[_Turn] = field(default_factory=list)

    @property
    def turns(self) -> int:
        """Turns kept, the one being answered included."""
        return len(self._turns)

    def ask(self, text: str) -> list[int]:
        """Add the user's turn; returns the prompt's ids, ending with the answer's header."""
        if self._turns and self._turns[-1].answer is None:
            raise TemplateError("the last turn has no answer yet")
        self._turns.append(_Turn(text))
        return self.prompt()

    def answer(self, generated: Sequence[int]) -> str:
        """Keep the generated ids (with or without a stop id at their end); returns their text."""
        if not self._turns or self._turns[-1].answer is not None:
            raise TemplateError("there is no turn to answer")
        turn = self._turns[-1]
        turn.answer = self.renderer.without_stop(generated)
        turn.text = self.renderer.tokenizer.decode(turn.answer, skip_special_tokens=True)
        return turn.text

    def take_back(self) -> None:
        """Forget the last user turn, answered or not (an interrupted answer, a repeated turn)."""
        if self._turns:
            self._turns.pop()

    def prompt(self) -> list[int]:
        """Ids of everything kept, ending with the header of the answer that is due."""
        if not self._turns or self._turns[-1].answer is not None:
            raise TemplateError("there is no turn to answer")
        texts: list[str] = []
        for turn in self._turns:
            texts += [turn.user] if turn.answer is None else [turn.user, turn.text]
        kept = [turn.answer for turn in self._turns if turn.answer is not None]
        return self.renderer.prompt(Conversation.of(*texts, system=self.system), kept)

    def keep_last(self, turns: int) -> int:
        """Drop the oldest turns so that `turns` remain; the system text stays. Returns how many."""
        dropped = max(0, len(self._turns) - max(turns, 0))
        del self._turns[:dropped]
        return dropped

    def fit(self, longest_prompt: int) -> int:
        """Drop the oldest whole turns until the prompt has at most `longest_prompt` tokens.

        Returns:
            How many turns were dropped.

        Raises:
            TemplateError: the last turn alone is longer.
        """
        dropped = 0
        while len(self.prompt()) > longest_prompt:
            if len(self._turns) == 1:
                raise TemplateError(f"this turn alone is {len(self.prompt())} tokens long; "
                                    f"{longest_prompt} fit")  # fmt: skip
            dropped += self.keep_last(len(self._turns) - 1)
        return dropped

    def clear(self) -> None:
        """Start anew; the system text stays."""
        self._turns.clear()
