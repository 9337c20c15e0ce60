"""An evaluation that was interrupted asks for the rest alone, and gets the same numbers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mindspeed_llm.errors import DataError
from mindspeed_llm.evaluation.kept import Kept
from mindspeed_llm.inference.engine import Reply


class Counting:
    """Engine that answers with the prompt's own ids, a batch at a time, and can be interrupted."""

    def __init__(self, batches: int = 99) -> None:
        self.left, self.asked, self.scored = batches, [], []

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> Reply:
        raise AssertionError("one at a time is not asked for")

    def batches(self, prompts, *, max_new_tokens, batch_size) -> Iterator[dict[int, Reply]]:
        for first in range(0, len(prompts), batch_size):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            rows = range(first, min(first + batch_size, len(prompts)))
            self.asked += [prompts[row] for row in rows]
            yield {row: Reply(prompt_tokens=1, ids=prompts[row][:max_new_tokens], stop="stop")
                   for row in rows}  # fmt: skip

    def scores(self, rows, *, progress) -> list[list[tuple[float, int]]]:
        assert progress is None
        self.scored += rows
        return [[(len(ids) / 3, label) for label in labels] for ids, labels in rows]


PROMPTS = [[n, n + 1, n + 2] for n in range(9)]
OPTIONS = {"max_new_tokens": 2, "batch_size": 2}


def test_the_rest_alone_is_asked_for(tmp_path: Path) -> None:
    path, done = tmp_path / "new" / "r.json.part", []
    first = Counting(batches=2)
    with pytest.raises(KeyboardInterrupt):
        Kept(first, path, "m").generate_batch(PROMPTS, **OPTIONS, progress=done.append)
    with path.open("a") as file:
        file.write('["half a li')
    second = Counting()
    found = Kept(second, path, "m").generate_batch(PROMPTS, **OPTIONS, progress=done.append)
    assert len(first.asked) == 4 and len(second.asked) == 5 and sum(done) == 4 + 9
    assert [reply.ids for reply in found] == [prompt[:2] for prompt in PROMPTS]
    assert {reply.stop for reply in found} == {"stop"}


def test_scores_come_back_bit_by_bit(tmp_path: Path) -> None:
    rows = [(ids * (n % 3 + 1), [-100, n]) for n, ids in enumerate(PROMPTS)]
    first, second, path = Counting(), Counting(), tmp_path / "p"
    found = Kept(first, path, "m").scores(rows)
    again = Kept(second, path, "m")
    assert again.scores(rows[::-1]) == found[::-1] and not second.scored
    assert found[1][1] == (len(rows[1][0]) / 3, 1)
    assert len(again.scores([*rows, ([7], [7])])) == 10 and second.scored == [([7], [7])]


def test_other_models_and_other_questions_are_others(tmp_path: Path) -> None:
    path, engine = tmp_path / "p", Counting()
    Kept(engine, path, "m").generate_batch(PROMPTS[:1], **OPTIONS)
    Kept(engine, path, "other").generate_batch(PROMPTS[:1], **OPTIONS)
    Kept(engine, path, "m").generate_batch(PROMPTS[:1], max_new_tokens=3, batch_size=2)
    assert Kept(engine, path, "m").generate(PROMPTS[0], max_new_tokens=2).ids == [0, 1]
    assert len(engine.asked) == 3


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    engine, steps = Counting(), []
    twice = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    found = Kept(engine, tmp_path / "p", "m").generate_batch(
        twice, **OPTIONS, progress=steps.append
    )
    assert len(engine.asked) == 2 and sum(steps) == 3
    assert [reply.ids for reply in found] == [prompt[:2] for prompt in twice]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be read or written"):
        Kept(Counting(), tmp_path / "file" / "p", "m")
