"""Owns the turns that rows were made of: how they stand beside a prepared data set, a JSON line a
row, and how a row that is too long is made again from fewer of them. Knows no place of a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.render import Rendered, Renderer
from mindspeed_llm.data.targets import choose_targets
from mindspeed_llm.data.truncation import shorten
from mindspeed_llm.errors import DataError

_NONE = b"null\n"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Turns(NamedTuple):
    """The conversation of a row.

    Attributes:
        conversation: as the row has it.
        chosen: whether its targets are settled. If not, they are chosen by the settings after it
            was shortened: the last answer that is left is then the last.
    """

    conversation: Conversation
    chosen: bool = False

    def line(self) -> bytes:
        """One line of JSON; `null` for a single pair of turns, of which none can be dropped."""
        conversation = self.conversation
        messages = conversation.messages
        if len(messages) < 4:
            return _NONE
        said: dict[str, Any] = {"turns": [m.content for m in messages]}
        if conversation.system is not None:
            said["system"] = conversation.system
        if any(m.loss is not None for m in messages):
            said["loss"] = [m.loss for m in messages]
        if conversation.tools:
            said["tools"] = conversation.tools
        if any(m.tool for m in messages):
            said["tool"] = [m.tool for m in messages]
        if self.chosen:
            said["train"] = [m.train for m in messages]
            said["inputs"] = conversation.train_inputs
        return (_encode(said) + "\n").encode(errors="surrogatepass")

    @classmethod
    def of_line(cls, line: bytes, where: str) -> Turns | None:
        """What `line` wrote; None for `null`.

        Raises:
            DataError: no such line; `where` is its file and row.
        """
        if line == _NONE:
            return None
        try:
            said = json.loads(line.decode(errors="surrogatepass"))
            texts = said["turns"]
            train = said.get("train", [True] * len(texts))
            loss = said.get("loss", [None] * len(texts))
            tool = said.get("tool", [()] * len(texts))
            messages = tuple(
                Message("assistant" if i % 2 else "user", text, train[i], loss[i], tuple(tool[i]))
                for i, text in enumerate(texts)
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as err:
            raise DataError(f"{where}: not the turns of a row ({err!r}); prepare the data set "
                            "again") from err  # fmt: skip
        conversation = Conversation(messages, said.get("system"), said.get("inputs", False),
                                    said.get("tools", ""))  # fmt: skip
        return cls(conversation, "train" in said)


@dataclass(frozen=True)
class Shortener:
    """Makes a row of at most `limit` tokens of the turns of a longer one.

    Args:
        renderer: what the row was made with.
        policy: `--truncation`, see `truncation.shorten`.
        limit: `--seq-length`.
        train_on, train_on_inputs: see `targets.choose_targets`.
    """

    renderer: Renderer
    policy: str
    limit: int
    train_on: str
    train_on_inputs: bool

    def targets(self, conversation: Conversation) -> Conversation:
        """The conversation with the targets that the settings choose."""
        return choose_targets(conversation, self.train_on, self.train_on_inputs)

    def shorten(self, turns: Turns) -> tuple[Turns, Rendered] | None:
        """What is left, and its row; None where the policy leaves nothing to train."""
        left = shorten(turns.conversation, self.policy, self.limit, self._length)
        if left is None:
            return None
        shown = left if turns.chosen else self.targets(left)
        if not any(shown.is_target(m) for m in shown.messages):
            return None
        return Turns(left, turns.chosen), self.renderer.render(shown)

    def _length(self, conversation: Conversation) -> int:
        return len(self.renderer.render(conversation).ids)
