"""Owns the conversation: what a line means, streamed replies, what is remembered of them.

It reads lines through a function and writes to a transcript it is given; it knows neither flags nor
how tokens are made. Commands are in `commands`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from mindspeed_llm.data.dialogue import Dialogue
from mindspeed_llm.errors import TemplateError
from mindspeed_llm.inference import commands
from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.manner import Manner
from mindspeed_llm.inference.sampling import Sampling
from mindspeed_llm.inference.session import Identity, Made
from mindspeed_llm.inference.stream import TextStream
from mindspeed_llm.inference.transcript import Outcome, Transcript

PROMPT = "You >> "
MORE = "... "
QUIT = frozenset({"q", "quit", "exit"})
CLEAR = frozenset({"clear", "new"})
BLOCK = '"""'
# Once turns must go, so many go that the rest fills this part of the room: each time they go, the
# cache is of no use to the next turn, so it should be rare.
_REFILL = 0.75


class Talker(Protocol):
    """What chat needs of an engine."""

    context: int
    vocabulary: int

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
        manner: how replies are made, at first.
        identity: gives what a saved session has to be replayed with; called when it is needed.

    Attributes:
        replies: how many were made since the conversation began, those taken back included.
        last: the last reply; None before the first.
        attached: texts of files that go in front of the next message.
    """

    def __init__(
        self,
        engine: Talker,
        dialogue: Dialogue,
        *,
        read_line: Callable[[str], str],
        out: Transcript,
        manner: Manner,
        identity: Callable[[], Identity] | None = None,
    ) -> None:
        self.engine, self.dialogue = engine, dialogue
        self.read_line, self.out = read_line, out
        self.manner, self.identity = manner, identity
        self.replies = 0
        self.last: Outcome | None = None
        self.attached: list[str] = []
        self._has_told_limit = False

    def run(self) -> None:
        """Talk until `q`, `quit`, `exit`, the end of the input, or Ctrl-C at the prompt."""
        while True:
            try:
                line = self.read_line(PROMPT)
                if line.startswith(BLOCK):
                    self.say(self._block(line[len(BLOCK) :]))
                    continue
            except (EOFError, KeyboardInterrupt):
                self.out.leave()
                return
            text = line.strip()
            if text.lower() in QUIT:
                return
            if text.lower() in CLEAR:
                self.clear()
            elif line.startswith("//"):
                self.say(text[1:])
            elif line.startswith("/") and "\n" not in text:
                if commands.obey(self, text):
                    return
            else:
                self.say(text)

    def say(self, text: str) -> None:
        """Send `text`, after what is attached, and show the reply; nothing where both are empty."""
        text = "\n\n".join([*self.attached, *([text] if text.strip() else [])])
        if not text.strip():
            return
        self.attached.clear()
        try:
            self.dialogue.ask(text)
            self.reply()
        except TemplateError as err:
            self.dialogue.take_back()
            self.out.refuse(str(err))

    def reply(self) -> None:
        """Answer the turn that waits for it.

        Raises:
            TemplateError: the template or the context has no room for it; nothing was generated.
        """
        prompt = self._prompt()
        manner, decode = self.manner, self.dialogue.renderer.tokenizer.decode
        sampling = dataclasses.replace(
            manner.sampling, seed=(manner.sampling.seed + self.replies) % 2**63
        )
        self.replies += 1
        stream = TextStream(
            lambda ids: decode(ids, skip_special_tokens=True), manner.stop, raw=self.out.is_raw
        )
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            self.out.piece(piece)

        # Before the speaker is shown: from then on a user takes Ctrl-C to mean the reply.
        with interruptible() as pressed:
            self.out.begin()
            started = time.perf_counter()
            first = latest = started
            reply, tokens = self.engine.stream(
                prompt, sampling=sampling, max_new_tokens=manner.max_new_tokens
            )
            with contextlib.closing(tokens):
                for token in tokens:
                    latest = time.perf_counter()
                    first = latest if len(reply.ids) == 1 else first
                    show(stream.push(token))
                    if stream.stopped or pressed.is_set():
                        break
        show(stream.finish())
        ending = "stop_string" if stream.stopped else reply.stop or "interrupted"
        made = Made(
            sampling=sampling, system=self.dialogue.system, first=self.dialogue.first,
            limit=manner.max_new_tokens, ending=ending,
        )  # fmt: skip
        self.dialogue.answer(reply.ids[: stream.kept()], made)
        self.last = Outcome(
            number=len(self.dialogue.history), reply=reply, text="".join(pieces), ending=ending,
            limit=manner.max_new_tokens, first=first - started, seconds=latest - started,
            context=self.engine.context,
        )  # fmt: skip
        self.out.end(self.last, stats=manner.stats)

    def silently(self, prompt: list[int], sampling: Sampling, limit: int) -> list[int] | None:
        """Ids of a reply that is not shown; None where Ctrl-C stopped it."""
        with interruptible() as pressed:
            reply, tokens = self.engine.stream(prompt, sampling=sampling, max_new_tokens=limit)
            with contextlib.closing(tokens):
                for _ in tokens:
                    if pressed.is_set():
                        return None
        return reply.ids

    def clear(self) -> None:
        """Forget the conversation; settings and system text stay."""
        self.dialogue.clear()
        self.attached.clear()
        self.replies, self._has_told_limit = 0, False
        self.out.notice("a new conversation: earlier turns are forgotten", last=True)

    def _block(self, line: str) -> str:
        """Text between two triple quotes, over as many lines as it takes, as it stands."""
        lines = [line]
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(self.read_line(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(lines).strip("\n")

    def _prompt(self) -> list[int]:
        """The prompt; the oldest turns are left out where they are too many or too long, and that
        is told."""
        manner = self.manner
        by_count = self.dialogue.keep_last(manner.history_turns + 1)
        if by_count and not self._has_told_limit:
            self._has_told_limit = True
            self.out.notice(
                f"from here on only the last {manner.history_turns} turns before yours are "
                "remembered; --history-turns N keeps more"
            )
        room = self.engine.context - manner.max_new_tokens
        if manner.overflow == "error":
            size = len(self.dialogue.prompt())
            if size > room:
                raise TemplateError(
                    f"the conversation has {size} tokens and {room} fit: clear, /undo, or "
                    "--overflow drop-turns"
                )
        by_length = self.dialogue.fit(room, int(room * _REFILL))
        if by_length:
            left = "oldest turn" if by_length == 1 else f"{by_length} oldest turns"
            self.out.notice(
                f"the {left} left out: the conversation is longer than the context of "
                f"{self.engine.context} tokens"
            )
        return self.dialogue.prompt()
