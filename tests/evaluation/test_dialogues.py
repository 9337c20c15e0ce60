"""Memory dialogues: answerable from what was told, at the stated distance, and the same by seed."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mindspeed_llm.errors import DataError
from mindspeed_llm.evaluation import dialogues
from mindspeed_llm.evaluation.dialogues import KINDS, MAX_DISTANCE, generate, training

PARTS = ("train", "test")


@pytest.mark.parametrize("part", PARTS)
def test_same_seed_same_dialogues_other_seed_others(part: str) -> None:
    assert generate(part, 60, 7) == generate(part, 60, 7)
    assert generate(part, 60, 7) != generate(part, 60, 8)


@pytest.mark.parametrize("part", PARTS)
def test_kinds_and_distances_come_equally_often_and_nothing_twice(part: str) -> None:
    made = generate(part, 2 * len(KINDS) * MAX_DISTANCE, 3)
    counts = Counter((d.kind, d.distance) for d in made)
    assert set(counts.values()) == {2} and len(counts) == len(KINDS) * MAX_DISTANCE
    assert len({d.turns for d in made}) == len(made)


@pytest.mark.parametrize("part", PARTS)
def test_told_where_distance_says_and_nowhere_later(part: str) -> None:
    for dialogue in generate(part, 400, 11):
        users = [user for user, _ in dialogue.turns]
        if dialogue.kind == "not_told":
            name = dialogue.answer.split("what ")[1].split()[0]
            assert name in dialogue.question
            assert not any(name in user for user in users[:-1])
            assert any(value in users[-1 - dialogue.distance] for value in dialogue.forbidden)
            continue
        for value in dialogue.expected:
            lower = [value.lower() in user.lower() for user in users]
            assert lower[-1 - dialogue.distance], dialogue
            assert not any(lower[-dialogue.distance :]), dialogue


@pytest.mark.parametrize("part", PARTS)
def test_answers_hold_what_is_expected_and_nothing_forbidden(part: str) -> None:
    for dialogue in generate(part, 400, 12):
        assert all(value in dialogue.answer for value in dialogue.expected)
        assert not any(value in dialogue.answer for value in dialogue.forbidden)
        assert dialogue.expected and dialogue.answer.endswith(".")
        replies = " ".join(assistant for _, assistant in dialogue.turns[:-1])
        assert not any(value in replies for value in dialogue.expected)


def test_an_update_is_told_after_the_old_value() -> None:
    for dialogue in (d for d in generate("train", 300, 5) if d.kind == "update"):
        users = [user for user, _ in dialogue.turns]
        old = next(
            i for i, user in enumerate(users) if dialogue.forbidden[0].lower() in user.lower()
        )
        assert old < len(users) - 1 - dialogue.distance


def test_training_talk_never_appears_in_the_test_part() -> None:
    train = {user for d in generate("train", 500, 1) for user, _ in d.turns}
    test = {user for d in generate("test", 300, 1) for user, _ in d.turns}
    assert not train & test


def test_a_sixth_of_the_training_rows_is_ordinary_talk_and_none_comes_twice() -> None:
    rows = training(120, 4)
    assert rows == training(120, 4) != training(120, 5)
    counts = Counter(d.kind for d in rows)
    assert counts.pop("ordinary") == 20 and set(counts) == set(KINDS)
    assert len({d.turns for d in rows}) == len(rows) == 120
    with pytest.raises(DataError, match="ordinary conversations"):
        dialogues.practice(1_000_000, 0)


def test_written_files_have_alpaca_rows(tmp_path: Path) -> None:
    counts = dialogues.write(tmp_path / "set", train=20, test=12, seed=0)
    assert {p.name for p in (tmp_path / "set").iterdir()} == set(counts)
    train = pq.read_table(tmp_path / "set" / "train.parquet")
    assert train.column_names == ["instruction", "input", "output", "histories"]
    assert train.num_rows == 20
    wanted = {tuple(map(tuple, d.row()["histories"])) for d in training(20, 0)}
    assert {tuple(map(tuple, row)) for row in train["histories"].to_pylist()} == wanted
    test = pq.read_table(tmp_path / "set" / "test.parquet").to_pylist()
    assert test == [d.row() for d in generate("test", 12, 0)]
    guide = json.loads((tmp_path / "set" / "guide.json").read_text())
    assert guide["user"][-1].startswith("Here I go again")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(dialogues.pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        dialogues.write(tmp_path, train=6, test=6, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_impossible_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="-1 dialogues"):
        generate("test", -1, 0)
    with pytest.raises(DataError, match="ask for fewer"):
        generate("test", 2_000_000, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        dialogues.write(tmp_path / "file", train=1, test=1, seed=0)
