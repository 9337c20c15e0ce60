"""What an evaluation asks of an engine, and what it makes of the replies."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.evaluation import run
from mindspeed_llm.evaluation.dialogues import generate, ordinary
from mindspeed_llm.inference.engine import Reply


class Scripted:
    """Engine that answers what it was told to, and charges 0.5 nats a target."""

    def __init__(self, answer: Callable[[list[int]], tuple[list[int], str]]) -> None:
        self.answer = answer
        self.prompts: list[list[int]] = []

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> Reply:
        self.prompts.append(list(prompt))
        ids, stop = self.answer(list(prompt))
        return Reply(prompt_tokens=len(prompt), ids=ids[:max_new_tokens], stop=stop)

    def generate_batch(self, prompts, *, max_new_tokens, batch_size, progress) -> list[Reply]:
        found = [self.generate(p, max_new_tokens=max_new_tokens) for p in prompts]
        progress(len(found))
        return found

    def likelihood(self, rows) -> list[tuple[float, int]]:
        counts = [sum(label != -100 for label in labels[1:]) for _, labels in rows]
        return [(0.5 * count, count) for count in counts]


@pytest.fixture
def renderer(tiny_tokenizer_dir: Path) -> Renderer:
    return Renderer(load_tokenizer(tiny_tokenizer_dir), find_template("chatml"))


def test_recall_asks_after_the_whole_history_and_scores(renderer: Renderer) -> None:
    made = generate("test", 24, 1)
    wanted = {}
    for dialogue in made:
        texts = [text for turn in dialogue.turns for text in turn]
        prompt = renderer.prompt(Conversation.of(*texts[:-1], system="Be short."))
        wanted[tuple(prompt)] = texts[-1]

    def answer(prompt: list[int]) -> tuple[list[int], str]:
        return renderer.tokenizer.encode_text(wanted[tuple(prompt)]), "stop"

    steps: list[int] = []
    outcomes = run.recall(Scripted(answer), renderer, made, system="Be short.",
                          max_new_tokens=400, batch_size=4, progress=steps.append)  # fmt: skip
    assert all(o.exact and o.value and o.stopped for o in outcomes)
    assert [o.dialogue for o in outcomes] == made and sum(steps) == 24


def test_a_cut_reply_did_not_stop(renderer: Renderer) -> None:
    made = generate("test", 6, 1)
    outcomes = run.recall(Scripted(lambda prompt: ([5, 6], "length")), renderer, made, system=None,
                          max_new_tokens=2, batch_size=4, progress=lambda n: None)  # fmt: skip
    assert not any(o.stopped or o.exact for o in outcomes)


def test_loss_is_one_mean_over_all_supervised_tokens(renderer: Renderer) -> None:
    made = ordinary()
    result = run.loss(Scripted(lambda prompt: ([], "stop")), renderer, made, system=None)
    rows = [renderer.render(Conversation.of(*[t for turn in d.turns for t in turn])) for d in made]
    assert result["tokens"] == sum(label != -100 for row in rows for label in row.labels)
    assert result["loss"] == pytest.approx(0.5) and result["dialogues"] == len(made)


def test_replay_keeps_the_replies_in_the_history(renderer: Renderer) -> None:
    said = iter(["One.", "Two."])
    engine = Scripted(lambda prompt: (renderer.tokenizer.encode_text(next(said)), "stop"))
    turns = list(run.replay(engine, renderer, ["Hi", "And?"], system=None, max_new_tokens=50))
    assert turns == [("Hi", "One."), ("And?", "Two.")]
    assert engine.prompts[1] == renderer.prompt(Conversation.of("Hi", "One.", "And?"))
