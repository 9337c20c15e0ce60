"""What the tests of chat share: an engine that replays scripted replies, and scripted lines."""

import functools
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mindspeed_llm.data.dialogue import Dialogue
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.chat import Chat
from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.manner import Manner
from mindspeed_llm.inference.reply import Ticket
from mindspeed_llm.inference.sampling import GREEDY, Logprob, Sampling
from mindspeed_llm.inference.scheduler import Scheduler
from mindspeed_llm.inference.transcript import JsonLines, Plain


class Scripted:
    """Engine whose replies are written beforehand; keeps the prompts it was given."""

    def __init__(self, replies: Sequence[Sequence[int]], context: int = 4096) -> None:
        self.replies, self.context, self.vocabulary = list(replies), context, 480
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.closed = 0
        self.before_token: Callable[[int], None] = lambda index: None

    def stream(
        self, prompt: Sequence[int], *, sampling: Sampling, max_new_tokens: int
    ) -> tuple[Reply, Iterator[int]]:
        self.prompts.append(list(prompt))
        self.samplings.append(sampling)
        reply = Reply(prompt_tokens=len(prompt))
        return reply, self._tokens(reply, self.replies.pop(0), max_new_tokens)

    def _tokens(self, reply: Reply, ids: Sequence[int], limit: int) -> Iterator[int]:
        try:
            for index, token in enumerate(ids):
                self.before_token(index)
                reply.ids.append(token)
                if len(reply.ids) == limit:
                    reply.stop = "length"
                yield token
                if reply.stop:
                    return
            reply.stop = "stop"
        finally:
            self.closed += 1


class Letters:
    """An engine that says a, b, c, ... to every prompt, one letter a step."""

    def __init__(self) -> None:
        self.context, self.vocabulary = 64, 480
        self.scheduler = Scheduler(lambda: None, budget=640)
        self.tickets: list[Ticket] = []
        self.cancelled: list[int] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.number = 0
        self.failure: Exception | None = None
        self.ids = list(range(97, 123))

    def check(self, prompt: list[int], max_new_tokens: int) -> None:
        if not prompt:
            raise ConfigError("the prompt is empty")

    def submit(self, prompt: list[int], **how: object) -> Ticket:
        self.check(prompt, how["max_new_tokens"])
        self.number += 1
        ticket = Ticket(self.number, prompt, how["sampling"], how["max_new_tokens"],
                        echo=how["echo"])  # fmt: skip
        self.tickets.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        self.cancelled.append(ticket.number)
        self.tickets.remove(ticket)

    @property
    def is_busy(self) -> bool:
        return bool(self.tickets)

    def advance(self) -> list[Ticket]:
        assert self.may_go_on.wait(30)
        if self.failure is not None:
            raise self.failure
        took = list(self.tickets)
        for ticket in took:
            told = (
                None if ticket.sampling.logprobs is None else Logprob(-0.5, [(self.ids[0], -0.5)])
            )
            ticket.take(self.ids[len(ticket.reply.ids) % len(self.ids)], told, frozenset())
            if ticket.reply.stop:
                self.tickets.remove(ticket)
        return took


class Talk:
    """A chat over a script of lines; EOF after the last."""

    def __init__(self, renderer: Renderer, lines: Sequence[str | type[BaseException]],
                 replies: Sequence[str | Sequence[int]], *, context: int = 4096,
                 json: bool = False, identity: object = None, sampling: Sampling = GREEDY,
                 **manner: object) -> None:  # fmt: skip
        self.encode = renderer.tokenizer.encode_text
        self.engine = Scripted(
            [self.encode(text) if isinstance(text, str) else text for text in replies], context
        )
        self.out = io.StringIO()
        self.lines = list(lines)
        self.dialogue = Dialogue(renderer)
        self.chat = Chat(
            self.engine, self.dialogue, read_line=self.read,
            out=JsonLines(self.out) if json else Plain(self.out),
            manner=Manner(sampling=sampling, **{"max_new_tokens": 100, **manner}),
            identity=identity and (lambda: identity),
        )  # fmt: skip
        self.shown = not json

    def read(self, prompt: str) -> str:
        if self.shown:
            self.out.write(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return line

    def run(self) -> str:
        self.chat.run()
        return self.out.getvalue()


@pytest.fixture
def renderer(tiny_tokenizer_dir: Path) -> Renderer:
    return Renderer(load_tokenizer(tiny_tokenizer_dir), find_template("chatml"))


@pytest.fixture
def scripted_engine() -> type[Scripted]:
    return Scripted


@pytest.fixture
def letters() -> type[Letters]:
    return Letters


@pytest.fixture
def talking(renderer: Renderer) -> Callable[..., Talk]:
    """Factory: `talking(lines, replies, context=, json=, identity=, sampling=, **manner)`."""
    return functools.partial(Talk, renderer)
