"""What an evaluation asks of an engine, and what it makes of the replies."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.evaluation import run
from mindspeed_llm.evaluation.dialogues import test_set as draw_test_set
from mindspeed_llm.inference.engine import Reply


class Scripted:
    """Engine that answers what it was told to, and charges 0.5 nats a target, which it guesses."""

    def __init__(self, answer: Callable[[list[int]], tuple[list[int], str]]) -> None:
        self.answer = answer
        self.prompts: list[list[int]] = []
        self.rows: list[tuple[list[int], list[int]]] = []

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> Reply:
        self.prompts.append(list(prompt))
        ids, stop = self.answer(list(prompt))
        return Reply(prompt_tokens=len(prompt), ids=ids[:max_new_tokens], stop=stop)

    def generate_batch(self, prompts, *, max_new_tokens, batch_size, progress) -> list[Reply]:
        found = [self.generate(p, max_new_tokens=max_new_tokens) for p in prompts]
        progress(len(found))
        return found

    def scores(self, rows, *, progress=None) -> list[list[tuple[float, int]]]:
        self.rows += rows
        if progress is not None:
            progress(len(rows))
        return [[(0.5, label) for label in labels[1:] if label != -100] for _, labels in rows]


@pytest.fixture
def renderer(tiny_tokenizer_dir: Path) -> Renderer:
    return Renderer(load_tokenizer(tiny_tokenizer_dir), find_template("chatml"))


def silent(prompt: list[int]) -> tuple[list[int], str]:
    return [], "stop"


def test_recall_asks_every_probe_after_the_dialogues_own_turns(renderer: Renderer) -> None:
    made = draw_test_set(3, 1, (2, 4))
    wanted = {}
    for dialogue in made:
        texts = [text for turn in dialogue.turns for text in (turn.user, turn.assistant)]
        for at, turn in enumerate(dialogue.turns):
            if turn.probe:
                until = Conversation.of(*texts[: 2 * at + 1], system="Be short.")
                wanted[tuple(renderer.prompt(until))] = turn.assistant

    def answer(prompt: list[int]) -> tuple[list[int], str]:
        return renderer.tokenizer.encode_text(wanted[tuple(prompt)]), "stop"

    steps: list[int] = []
    engine = Scripted(answer)
    outcomes = run.recall(engine, renderer, made, system="Be short.", max_new_tokens=400,
                          batch_size=4, progress=steps.append)  # fmt: skip
    assert all(o.exact and o.value and o.stopped for o in outcomes)
    assert [o.dialogue for o in outcomes] == made
    # Three of the dialogues are refusals and three count: those have two probes each.
    assert sum(steps) == len(engine.prompts) == run.probes(made) == len(made) + 6


def test_a_cut_reply_did_not_stop(renderer: Renderer) -> None:
    outcomes = run.recall(Scripted(lambda prompt: ([5, 6], "length")), renderer,
                          draw_test_set(1, 1, (2,)), system=None, max_new_tokens=2, batch_size=4,
                          progress=lambda n: None)  # fmt: skip
    assert not any(o.stopped or o.exact for o in outcomes)


TALK = [
    Conversation.of("Hi", "Hello.", "And?", "Nothing."),
    Conversation.of("One", "Two.", "Three", "Four.", "Five", "Six."),
    Conversation.of("Alone", "Yes."),
]


def test_loss_is_one_mean_over_all_supervised_tokens(renderer: Renderer) -> None:
    found = run.likelihood(Scripted(silent), renderer, TALK)
    rows = renderer.render_many(TALK)
    assert found["tokens"] == sum(label != -100 for row in rows for label in row.labels)
    assert found["loss"] == pytest.approx(0.5) and found["dialogues"] == 3
    assert [turn["replies"] for turn in found["turns"]] == [3, 2, 1]
    assert found["ends"] == 1 and found["early"] == 0


def test_history_gain_asks_for_the_last_reply_after_three_histories(renderer: Renderer) -> None:
    engine = Scripted(silent)
    steps: list[int] = []
    found = run.history_gain(engine, renderer, TALK, progress=steps.append)
    assert found is not None and found["dialogues"] == 2 and sum(steps) == 6
    assert found["gain_over_none"] == 0 == found["helped"]
    said = [
        (renderer.tokenizer.decode(ids, skip_special_tokens=True),
         renderer.tokenizer.decode([x for x in labels if x != -100], skip_special_tokens=True))
        for ids, labels in engine.rows
    ]  # fmt: skip
    assert [answer for _, answer in said] == ["Nothing.", "Six."] * 3
    for (text, _), first in zip(said, ["Hi", "One", "One", "Hi", "And?", "Five"], strict=True):
        users = text.split("user\n")
        assert users[1].startswith(first), text


def test_one_conversation_has_no_other_history(renderer: Renderer) -> None:
    assert run.history_gain(Scripted(silent), renderer, TALK[1:]) is None


def test_replay_keeps_the_replies_in_the_history(renderer: Renderer) -> None:
    said = iter(["One.", "Two."])
    engine = Scripted(lambda prompt: (renderer.tokenizer.encode_text(next(said)), "stop"))
    turns = list(run.replay(engine, renderer, ["Hi", "And?"], system=None, max_new_tokens=50))
    assert turns == [("Hi", "One."), ("And?", "Two.")]
    assert engine.prompts[1] == renderer.prompt(Conversation.of("Hi", "One.", "And?"))
