"""Owns the conversation in a terminal: prompt, commands, streamed reply, what is remembered.

It reads lines through a function and writes to a stream it is given; it knows neither flags nor how
tokens are made.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO

from mindspeed_llm.data.dialogue import Dialogue
from mindspeed_llm.errors import TemplateError
from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.sampling import Sampling
from mindspeed_llm.inference.stream import TextStream

PROMPT = "You >> "
SPEAKER = "MindSpeed-LLM:"
QUIT = frozenset({"q", "quit", "exit"})
CLEAR = frozenset({"clear", "new"})


class Talker(Protocol):
    """What chat needs of an engine."""

    context: int

    def stream(
        self, prompt: Sequence[int], *, sampling: Sampling, max_new_tokens: int
    ) -> tuple[Reply, Iterator[int]]:
        """See `Engine.stream`."""


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """While inside, Ctrl-C sets the event instead of raising; a second one raises as usual.

    A reply may be in the middle of a step that all ranks take together, so it is stopped between
    two steps.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # signals reach the main thread alone
        return
    before = signal.getsignal(signal.SIGINT)

    def press(_number: int, _frame: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Chat:
    """A conversation with a user.

    Args:
        engine: makes the replies.
        dialogue: empty, or with turns that came before.
        read_line: shows the prompt it is given and returns a line without its end; raises EOFError
            at the end of the input and KeyboardInterrupt on Ctrl-C.
        out: where replies and notices go.
        sampling, max_new_tokens: of every reply.
        history_turns: how many earlier turns the model sees.
    """

    def __init__(
        self,
        engine: Talker,
        dialogue: Dialogue,
        *,
        read_line: Callable[[str], str],
        out: TextIO,
        sampling: Sampling,
        max_new_tokens: int,
        history_turns: int,
    ) -> None:
        self.engine, self.dialogue = engine, dialogue
        self.read_line, self.out = read_line, out
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        self.history_turns = history_turns
        self._has_told_limit = False

    def run(self) -> None:
        """Talk until `q`, `quit`, `exit`, the end of the input, or Ctrl-C at the prompt."""
        while True:
            try:
                line = self.read_line(PROMPT)
            except (EOFError, KeyboardInterrupt):
                self._say("\n")
                return
            text = line.strip()
            if text.lower() in QUIT:
                return
            if text.lower() in CLEAR:
                self.dialogue.clear()
                self._has_told_limit = False
                self._say("[a new conversation: earlier turns are forgotten]\n\n")
            elif text:
                self._turn(text)

    def _turn(self, text: str) -> None:
        try:
            self.dialogue.ask(text)
            self._keep_within_limits()
            prompt = self.dialogue.prompt()
        except TemplateError as err:
            self.dialogue.take_back()
            self._say(f"[not sent: {err}]\n\n")
            return
        decode = self.dialogue.renderer.tokenizer.decode
        stream = TextStream(lambda ids: decode(ids, skip_special_tokens=True))
        # Before the speaker is shown: from then on a user takes Ctrl-C to mean the reply.
        with interruptible() as pressed:
            self._say(f"{SPEAKER}\n")
            reply, tokens = self.engine.stream(
                prompt, sampling=self.sampling, max_new_tokens=self.max_new_tokens
            )
            with contextlib.closing(tokens):
                for token in tokens:
                    self._say(stream.push(token))
                    if pressed.is_set():
                        break
        self._say(stream.finish())
        self.dialogue.answer(reply.ids)
        if pressed.is_set():
            self._say(" [stopped]")
        elif reply.stop == "length":
            self._say(f" [cut after --max-new-tokens {self.max_new_tokens}]")
        self._say("\n\n")

    def _keep_within_limits(self) -> None:
        """Drop the oldest turns that are too many or too long, and say so."""
        by_count = self.dialogue.keep_last(self.history_turns + 1)
        if by_count and not self._has_told_limit:
            self._has_told_limit = True
            self._say(
                f"[from here on only the last {self.history_turns} turns before yours are "
                "remembered; --history-turns N keeps more]\n"
            )
        by_length = self.dialogue.fit(self.engine.context - self.max_new_tokens)
        if by_length:
            self._say(
                f"[the {by_length} oldest turn{'s' if by_length > 1 else ''} left out: the "
                f"conversation is longer than the context of {self.engine.context} tokens]\n"
            )

    def _say(self, text: str) -> None:
        if text:
            self.out.write(text)
            self.out.flush()
