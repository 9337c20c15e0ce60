"""Owns what is asked of a model in an evaluation: replies to the probes of mt-recall, likelihoods
of conversations, replay of a user's turns. It knows an engine and a renderer; it prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from mindspeed_llm.data.dialogue import Dialogue as RunningDialogue
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.evaluation.dialogues import Dialogue
from mindspeed_llm.evaluation.likelihood import Scored, gain_of, only_last, with_history_of
from mindspeed_llm.evaluation.likelihood import summary as likelihood_summary
from mindspeed_llm.evaluation.recall import Outcome, score
from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.stream import printable

Progress = Callable[[int], None]


class Evaluated(Protocol):
    """What an evaluation needs of an engine; see `inference.engine.Engine`."""

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> Reply: ...

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int,
        progress: Progress | None,
    ) -> list[Reply]: ...  # fmt: skip

    def scores(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, progress: Progress | None
    ) -> list[list[tuple[float, int]]]: ...


def probes(dialogues: Sequence[Dialogue]) -> int:
    """How many replies `recall` asks for."""
    return sum(turn.probe is not None for dialogue in dialogues for turn in dialogue.turns)


def recall(
    engine: Evaluated,
    renderer: Renderer,
    dialogues: Sequence[Dialogue],
    *,
    system: str | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Ask every probe after the dialogue's own turns before it, greedily; all are scored."""
    asked: list[int] = []  # the dialogue of each prompt
    prompts: list[list[int]] = []
    for at, dialogue in enumerate(dialogues):
        texts = [text for turn in dialogue.turns for text in (turn.user, turn.assistant)]
        for index, turn in enumerate(dialogue.turns):
            if turn.probe is not None:
                asked.append(at)
                until = Conversation.of(*texts[: 2 * index + 1], system=system)
                prompts.append(renderer.prompt(until))
    replies = engine.generate_batch(
        prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    said: list[list[tuple[str, bool]]] = [[] for _ in dialogues]
    for at, reply in zip(asked, replies, strict=True):
        text = printable(renderer.tokenizer.decode(reply.ids, skip_special_tokens=True))
        said[at].append((text, reply.stop == "stop"))
    return [score(dialogue, texts) for dialogue, texts in zip(dialogues, said, strict=True)]


def likelihood(
    engine: Evaluated,
    renderer: Renderer,
    conversations: Sequence[Conversation],
    *,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Loss, perplexity and stop accuracy of every reply, in all and by turn; JSON-ready."""
    rows = renderer.render_many(conversations)
    scores = engine.scores([(row.ids, row.labels) for row in rows], progress=progress)
    scored = [Scored.of(row.labels, found) for row, found in zip(rows, scores, strict=True)]
    return likelihood_summary(scored, frozenset(renderer.stop_ids))


def history_gain(
    engine: Evaluated,
    renderer: Renderer,
    conversations: Sequence[Conversation],
    *,
    progress: Progress | None = None,
) -> dict[str, float] | None:
    """Loss of the last reply after its own history, after another conversation's, and after none.

    Only conversations of two or more replies count; the history of another one is that of the next
    of them, the first one's for the last. None where there are fewer than two.
    """
    long = [c for c in conversations if len(c.messages) >= 4]
    if len(long) < 2:
        return None
    kinds = {
        "true": [only_last(c) for c in long],
        "shuffled": [
            with_history_of(c, other) for c, other in zip(long, long[1:] + long[:1], strict=True)
        ],
        "none": [with_history_of(c, None) for c in long],
    }
    losses: dict[str, list[tuple[float, int]]] = {}
    for name, group in kinds.items():
        rows = renderer.render_many(group)
        scores = engine.scores([(row.ids, row.labels) for row in rows], progress=progress)
        losses[name] = [(sum(loss for loss, _ in row), len(row)) for row in scores]
    return gain_of(losses)


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
