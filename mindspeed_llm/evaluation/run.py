"""Owns what is asked of a model in an evaluation: recall, likelihood, replay of a user's turns. It
knows an engine and a renderer; it prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from mindspeed_llm.data.dialogue import Dialogue as RunningDialogue
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.evaluation.dialogues import Dialogue
from mindspeed_llm.evaluation.recall import Outcome, score
from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.stream import printable


class Evaluated(Protocol):
    """What an evaluation needs of an engine; see `inference.engine.Engine`."""

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> Reply: ...

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int,
        progress: Callable[[int], None] | None,
    ) -> list[Reply]: ...  # fmt: skip

    def likelihood(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, int]]: ...


def recall(
    engine: Evaluated,
    renderer: Renderer,
    dialogues: Sequence[Dialogue],
    *,
    system: str | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Ask each dialogue's question after its own history; greedy."""
    prompts = [
        renderer.prompt(Conversation.of(*_texts(dialogue)[:-1], system=system))
        for dialogue in dialogues
    ]
    replies = engine.generate_batch(
        prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    decode = renderer.tokenizer.decode
    return [
        score(
            dialogue,
            printable(decode(reply.ids, skip_special_tokens=True)),
            stopped=reply.stop == "stop",
        )
        for dialogue, reply in zip(dialogues, replies, strict=True)
    ]


def loss(
    engine: Evaluated,
    renderer: Renderer,
    dialogues: Sequence[Dialogue],
    *,
    system: str | None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Mean negative log-likelihood in nats of what training would supervise: every answer and its
    end-of-turn token; one mean over all tokens of all dialogues."""
    total, tokens = 0.0, 0
    for dialogue in dialogues:
        rendered = renderer.render(Conversation.of(*_texts(dialogue), system=system))
        ((part, count),) = engine.likelihood([(rendered.ids, rendered.labels)])
        total, tokens = total + part, tokens + count
        if progress is not None:
            progress(1)
    return {"loss": total / tokens, "tokens": tokens, "dialogues": len(dialogues)}


def replay(
    engine: Evaluated,
    renderer: Renderer,
    users: Sequence[str],
    *,
    system: str | None,
    max_new_tokens: int,
) -> Iterator[tuple[str, str]]:
    """(user's turn, reply) one by one; the model sees all earlier turns and its own replies."""
    running = RunningDialogue(renderer, system)
    for text in users:
        reply = engine.generate(running.ask(text), max_new_tokens=max_new_tokens)
        yield text, printable(running.answer(reply.ids)).strip()


def _texts(dialogue: Dialogue) -> list[str]:
    return [text for turn in dialogue.turns for text in turn]
