"""Owns the answers to OpenAI's requests: prompts become jobs, what the jobs say becomes bodies and
events. It knows no web framework; `protocol` says what was asked."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.errors import TemplateError, UserError
from mindspeed_llm.inference.metrics import Metrics
from mindspeed_llm.inference.protocol import ApiError, ChatWish, Defaults, TextWish, Wish
from mindspeed_llm.inference.reply import Reply
from mindspeed_llm.inference.sampling import Logprob
from mindspeed_llm.inference.stream import TextStream
from mindspeed_llm.inference.worker import Full, Job, Said, Stopped, Worker

_REMEMBERED = 2**20  # ids of earlier answers
_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length"}


class Remembered:
    """Ids of the answers that were given, by their text, so that a conversation that comes back
    goes on with the very ids it was made of; the oldest go first."""

    def __init__(self) -> None:
        self._ids: collections.OrderedDict[str, list[int]] = collections.OrderedDict()
        self._size = 0

    def keep(self, text: str, ids: Sequence[int]) -> None:
        """Remember an answer."""
        self._size += len(ids) - len(self._ids.pop(text, ()))
        self._ids[text] = list(ids)
        while self._size > _REMEMBERED:
            _, gone = self._ids.popitem(last=False)
            self._size -= len(gone)

    def of(self, conversation: Conversation) -> list[list[int]]:
        """Ids of the first answers, as far as they are known."""
        found: list[list[int]] = []
        for message in conversation.messages:
            if message.role != "assistant":
                continue
            if message.content not in self._ids:
                break
            self._ids.move_to_end(message.content)
            found.append(self._ids[message.content])
        return found


class Piece(NamedTuple):
    """A part of a choice: text, from which to which of its ids it reaches, whether it ends it."""

    text: str
    first: int
    upto: int
    is_last: bool


@dataclasses.dataclass
class Choice:
    """One reply of a request.

    Attributes:
        job: what the engine works on.
        parts: what it says, in order.
        text: what was said so far.
        kept: ids of the reply that count.
    """

    job: Job
    parts: asyncio.Queue[Said]
    text: str = ""
    kept: int = 0

    @property
    def reply(self) -> Reply:
        """What was made so far."""
        return self.job.reply

    @property
    def reason(self) -> str | None:
        """OpenAI's word for why it ended."""
        stop = self.reply.stop
        return None if stop is None else _REASONS[stop]


class Answers:
    """Makes answers.

    Args:
        worker: runs the engine.
        tokenizer: of the model.
        renderer: its chat template; None where there is none, and no chat.
        defaults: what counts where a request says nothing.
        metrics: what is counted.
    """

    def __init__(
        self, worker: Worker, tokenizer: Tokenizer, renderer: Renderer | None,
        defaults: Defaults, metrics: Metrics,
    ) -> None:  # fmt: skip
        self.worker, self.tokenizer, self.renderer = worker, tokenizer, renderer
        self.defaults, self.metrics = defaults, metrics
        self.remembered = Remembered()

    def chat(self, wish: ChatWish) -> list[Choice]:
        """Begin the choices of a chat completion.

        Raises:
            ApiError: no room, too long, or no template.
        """
        if self.renderer is None:
            raise ApiError(400, "this server was started without a chat template; use "
                           "/v1/completions, or start it with --hf-chat-template")  # fmt: skip
        try:
            prompt = self.renderer.prompt(wish.conversation, self.remembered.of(wish.conversation))
        except TemplateError as err:
            raise ApiError(400, str(err), param="messages") from err
        return self._begin([prompt], wish, echo=False, skip=True)

    def text(self, wish: TextWish) -> list[Choice]:
        """Begin the choices of a completion, those of the first prompt first.

        Raises:
            ApiError: no room, or too long.
        """
        vocabulary = self.worker.engine.vocabulary
        prompts = []
        for prompt in wish.prompts:
            # As a base model was trained: the text with what its tokenizer puts before a text.
            ids = self.tokenizer.hf(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            if any(index >= vocabulary for index in ids):
                raise ApiError(400, f"prompt has an id beyond the vocabulary of {vocabulary}",
                               param="prompt")  # fmt: skip
            prompts.append(ids)
        # An echo without log-probabilities needs nothing of the engine that others do not.
        echo = wish.echo and wish.sampling.logprobs is not None
        return self._begin(prompts, wish, echo=echo, skip=False)

    def _begin(
        self, prompts: Sequence[list[int]], wish: Wish, *, echo: bool, skip: bool
    ) -> list[Choice]:
        for prompt in prompts:
            self._check(prompt, wish.limit)
        loop = asyncio.get_running_loop()
        choices = []
        for prompt in prompts:
            for number in range(wish.choices):
                parts: asyncio.Queue[Said] = asyncio.Queue()

                def say(said: Said, parts: asyncio.Queue[Said] = parts) -> None:
                    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                        loop.call_soon_threadsafe(parts.put_nowait, said)

                def decode(ids: Sequence[int]) -> str:
                    return self.tokenizer.decode(ids, skip_special_tokens=skip)

                stream = TextStream(decode, wish.stop, raw=True)
                job = Job(prompt, wish.of_choice(number), wish.limit, stream, say, echo=echo)
                choices.append(Choice(job, parts))
        try:
            self.worker.submit([choice.job for choice in choices])
        except Full as err:
            raise ApiError(429, f"{self.worker.count} replies are being made or wait, as many as "
                           "may; try again later", code="queue_full") from err  # fmt: skip
        except Stopped as err:
            raise ApiError(503, "the server is shutting down") from err
        return choices

    def _check(self, prompt: Sequence[int], limit: int) -> None:
        engine = self.worker.engine
        if prompt and len(prompt) + limit > engine.context:
            raise ApiError(
                400, f"the prompt has {len(prompt)} tokens and max_tokens is {limit}: together "
                f"more than the context of {engine.context}", param="max_tokens",
                code="context_length_exceeded",
            )  # fmt: skip
        try:
            engine.check(prompt, limit)
        except UserError as err:
            raise ApiError(400, str(err)) from err

    async def finished(self, choices: Sequence[Choice]) -> None:
        """Wait until all are over.

        Raises:
            ApiError: one could not be made.
        """
        for choice in choices:
            async for _ in self.pieces(choice):
                pass

    async def pieces(self, choice: Choice) -> AsyncIterator[Piece]:
        """Parts of a choice, as they come.

        Raises:
            ApiError: it could not be made.
        """
        began, out = time.perf_counter(), 0
        while True:
            said = await choice.parts.get()
            if said.failure is not None:
                raise self._failure(said.failure)
            if out == 0 and choice.reply.ids:
                self.metrics.first_token(time.perf_counter() - began)
            choice.text += said.text
            first, out = out, max(out, said.upto)
            if said.is_last:
                choice.kept = said.upto
                reply = choice.reply
                self.metrics.reply(reply.prompt_tokens, reply.cached_tokens, len(reply.ids))
                self.remembered.keep(choice.text, reply.ids[: choice.kept])
            if said.text or out > first or said.is_last:
                yield Piece(said.text, first, out, said.is_last)
            if said.is_last:
                return

    def _failure(self, err: Exception) -> ApiError:
        if isinstance(err, UserError):
            return ApiError(400, str(err))
        if isinstance(err, Stopped):
            return ApiError(503, "the server is shutting down")
        return ApiError(500, "the engine failed; see the server's log")

    def cancel(self, choices: Sequence[Choice]) -> None:
        """Nobody wants the rest."""
        open_ = [choice.job for choice in choices
                 if choice.reply.stop is None and not choice.job.is_cancelled]  # fmt: skip
        if open_:
            self.metrics.cancelled(len(open_))
        self.worker.cancel(open_)

    # Bodies

    def usage(self, choices: Sequence[Choice], per_prompt: int) -> dict[str, Any]:
        """Counts; a prompt counts once, however many choices it has."""
        firsts = choices[::per_prompt]
        prompt = sum(choice.reply.prompt_tokens for choice in firsts)
        made = sum(len(choice.reply.ids) for choice in choices)
        cached = sum(choice.reply.cached_tokens for choice in firsts)
        return {
            "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip

    def head(self, kind: str) -> dict[str, Any]:
        """What every body of a request begins with."""
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind,
                "created": int(time.time()), "model": self.defaults.model}  # fmt: skip

    def chat_body(self, wish: ChatWish, choices: Sequence[Choice]) -> dict[str, Any]:
        """The body of a whole chat completion."""
        rows = [
            {"index": at, "finish_reason": choice.reason,
             "message": {"role": "assistant", "content": choice.text, "refusal": None},
             "logprobs": self._chat_logprobs(choice, 0, choice.kept)}
            for at, choice in enumerate(choices)
        ]  # fmt: skip
        return self.head("chat.completion") | {
            "choices": rows, "usage": self.usage(choices, wish.choices)}  # fmt: skip

    def text_body(self, wish: TextWish, choices: Sequence[Choice]) -> dict[str, Any]:
        """The body of a whole completion."""
        rows = []
        for at, choice in enumerate(choices):
            prompt = choice.job.prompt
            front = self.tokenizer.decode(prompt) if wish.echo else ""
            logprobs = None
            if wish.sampling.logprobs is not None:
                ids = [*(prompt if wish.echo else ()), *choice.reply.ids[: choice.kept]]
                known: list[Logprob | None] = list(choice.reply.logprobs[: choice.kept])
                if wish.echo:
                    known = [None, *choice.reply.prompt_logprobs, *known]
                logprobs = self._text_logprobs(ids, known, 0)
            rows.append({"index": at, "text": front + choice.text, "logprobs": logprobs,
                         "finish_reason": choice.reason})  # fmt: skip
        return self.head("text_completion") | {
            "choices": rows, "usage": self.usage(choices, wish.choices)}  # fmt: skip

    async def events(self, wish: Wish, choices: Sequence[Choice]) -> AsyncIterator[str]:
        """A streamed completion, as server-sent events."""
        is_chat = isinstance(wish, ChatWish)
        head = self.head("chat.completion.chunk" if is_chat else "text_completion")
        empty = {"usage": None} if wish.usage else {}

        def event(at: int, row: dict[str, Any]) -> str:
            return _event(head | {"choices": [{"index": at} | row]} | empty)

        if is_chat:
            for at in range(len(choices)):
                delta = {"role": "assistant", "content": ""}
                yield event(at, {"delta": delta, "logprobs": None, "finish_reason": None})
        try:
            async for at, piece in _merged([self.pieces(c) for c in choices]):
                choice, (text, first, upto, is_last) = choices[at], piece
                if is_chat:
                    row = {"delta": {"content": text},
                           "logprobs": self._chat_logprobs(choice, first, upto)}  # fmt: skip
                else:
                    row = {"text": text, "logprobs": self._piece_logprobs(choice, text, first,
                                                                          upto)}  # fmt: skip
                if text or upto > first:
                    yield event(at, row | {"finish_reason": None})
                if is_last:
                    last = {"delta": {}} if is_chat else {"text": ""}
                    yield event(at, last | {"logprobs": None, "finish_reason": choice.reason})
        except ApiError as err:
            yield _event(err.body())
            return
        if wish.usage:
            usage = self.usage(choices, wish.choices)
            yield _event(head | {"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    def _spelled(self, index: int) -> tuple[str, list[int] | None]:
        """Text of one id and its bytes; a part of a character has no bytes that could be told."""
        text = self.tokenizer.decode([index])
        return text, None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())

    def _chat_logprobs(self, choice: Choice, first: int, upto: int) -> dict[str, Any] | None:
        if choice.job.sampling.logprobs is None:
            return None

        def row(index: int, value: float) -> dict[str, Any]:
            text, data = self._spelled(index)
            return {"token": text, "logprob": value, "bytes": data}

        reply = choice.reply
        return {"content": [
            row(index, one.chosen) | {"top_logprobs": [row(*other) for other in one.top]}
            for index, one in zip(reply.ids[first:upto], reply.logprobs[first:upto], strict=True)
        ], "refusal": None}  # fmt: skip

    def _piece_logprobs(
        self, choice: Choice, text: str, first: int, upto: int
    ) -> dict[str, Any] | None:
        if choice.job.sampling.logprobs is None:
            return None
        reply = choice.reply
        return self._text_logprobs(
            reply.ids[first:upto], reply.logprobs[first:upto], len(choice.text) - len(text)
        )

    def _text_logprobs(
        self, ids: Sequence[int], known: Sequence[Logprob | None], offset: int
    ) -> dict[str, Any]:
        tokens = [self._spelled(index)[0] for index in ids]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        tops: list[dict[str, float] | None] = []
        for one in known:
            top: dict[str, float] = {}
            for index, value in () if one is None else one.top:
                top.setdefault(self._spelled(index)[0], value)  # the most probable came first
            tops.append(None if one is None else top)
        return {
            "tokens": tokens, "token_logprobs": [one and one.chosen for one in known],
            "top_logprobs": tops, "text_offset": offsets,
        }  # fmt: skip


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


async def _merged(
    sources: Sequence[AsyncIterator[Piece]],
) -> AsyncIterator[tuple[int, Piece]]:
    """What several sources give, as it comes, with the place of the source."""
    tasks = {asyncio.ensure_future(anext(source)): at for at, source in enumerate(sources)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda one: tasks[one]):
                at = tasks.pop(task)
                try:
                    piece = task.result()
                except StopAsyncIteration:
                    continue
                yield at, piece
                tasks[asyncio.ensure_future(anext(sources[at]))] = at
    finally:
        for task in tasks:
            task.cancel()
