"""Owns the memory dialogues: generates them from a seed and writes them as Alpaca rows with
`histories`; it does not know tokenizers, templates or models.

Something is told early, ordinary turns and turns that mention other values follow, the last turn
asks for it. A test row carries the values a right answer holds and those it must not mention.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mindspeed_llm.errors import DataError
from mindspeed_llm.evaluation.phrases import (
    ANSWER_FACT,
    ANSWER_LIKE,
    ANSWER_REASON,
    ANSWER_UNKNOWN,
    ANSWER_VERB,
    GUIDE_TURNS,
    TEST,
    TRAIN,
    Phrases,
)
from mindspeed_llm.evaluation.small_talk import ORDINARY, PRACTICE

KINDS = ("fact", "preference", "update", "binding", "not_told", "reason")
MAX_DISTANCE = 6
# One training row in so many is ordinary talk: on memory dialogues alone a small model unlearns how
# to talk.
_PRACTICE_SHARE = 6
_COLUMNS = [
    ("instruction", pa.string()),
    ("input", pa.string()),
    ("output", pa.string()),
    ("histories", pa.list_(pa.list_(pa.string()))),
]
_SCORED = [
    ("kind", pa.string()),
    ("distance", pa.int32()),
    ("expected", pa.list_(pa.string())),
    ("forbidden", pa.list_(pa.string())),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A conversation whose last answer is known.

    Attributes:
        turns: (user, assistant) pairs; the last one is the question and its answer.
        kind: one of `KINDS`, or "ordinary".
        distance: turns from the one that told the answer to the question; 0 for ordinary talk.
        expected: what a right answer contains.
        forbidden: values mentioned in the dialogue that would make the answer wrong.
    """

    turns: tuple[tuple[str, str], ...]
    kind: str
    distance: int = 0
    expected: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The last thing the user says."""
        return self.turns[-1][0]

    @property
    def answer(self) -> str:
        """The answer to the question, word for word."""
        return self.turns[-1][1]

    def row(self) -> dict[str, Any]:
        """Alpaca row with `histories` and the columns that scoring needs."""
        return {
            "instruction": self.question,
            "input": "",
            "output": self.answer,
            "histories": [list(turn) for turn in self.turns[:-1]],
            "kind": self.kind,
            "distance": self.distance,
            "expected": list(self.expected),
            "forbidden": list(self.forbidden),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Told:
    """What one kind needs: `before` and `told` are user statements, then the question."""

    before: tuple[str, ...]
    told: str
    question: str
    answer: str
    expected: tuple[str, ...]
    forbidden: tuple[str, ...]
    value_kind: str | None = None
    value: str = ""


class _Writer:
    """Draws dialogues of one part of the set."""

    def __init__(self, phrases: Phrases, rng: random.Random) -> None:
        self.phrases, self.rng = phrases, rng

    def dialogue(self, kind: str, distance: int) -> Dialogue:
        told = getattr(self, f"_{kind}")()
        filler = self._fillers(distance - 1 + self.rng.randint(0, 1) + len(told.before))
        turns: list[tuple[str, str]] = []
        for statement in told.before:
            turns.append((statement, self._acknowledge()))
            if self.rng.random() < 0.5:
                turns.append(next(filler))
        if not turns and self.rng.random() < 0.3:
            turns.append(next(filler))
        turns.append((told.told, self._acknowledge()))
        between = [next(filler) for _ in range(distance - 1)]
        forbidden = told.forbidden
        if between and told.value_kind and self.rng.random() < 0.6:
            turn, other = self._distractor(told.value_kind, told.value, forbidden)
            between[self.rng.randrange(len(between))] = turn
            forbidden = (*forbidden, other)
        turns += between
        turns.append((told.question, told.answer))
        return Dialogue(
            turns=tuple(turns), kind=kind, distance=distance,
            expected=told.expected, forbidden=tuple(dict.fromkeys(forbidden)),
        )  # fmt: skip

    def _fillers(self, at_least: int) -> Iterator[tuple[str, str]]:
        return iter(self.rng.sample(self.phrases.fillers, at_least + 2))

    def _acknowledge(self) -> str:
        return self.rng.choice(self.phrases.acknowledge)

    def _distractor(
        self, value_kind: str, value: str, taken: Sequence[str]
    ) -> tuple[tuple[str, str], str]:
        values = [v for v in self.phrases.values[value_kind] if v != value and v not in taken]
        other = self.rng.choice(values)
        user, assistant = self.rng.choice(self.phrases.distractors[value_kind])
        return (_sentence(user, value=other), assistant), other

    def _fact(self) -> _Told:
        slot, kind = self.rng.choice(self.phrases.slots)
        (value,) = self.rng.sample(self.phrases.values[kind], 1)
        return _Told(
            before=(),
            told=_sentence(self.rng.choice(self.phrases.state), slot=slot, value=value),
            question=_sentence(self.rng.choice(self.phrases.ask), slot=slot),
            answer=_sentence(ANSWER_FACT, slot=slot, value=value),
            expected=(value,), forbidden=(), value_kind=kind, value=value,
        )  # fmt: skip

    def _update(self) -> _Told:
        slot, kind = self.rng.choice(self.phrases.slots)
        old, new = self.rng.sample(self.phrases.values[kind], 2)
        return _Told(
            before=(_sentence(self.rng.choice(self.phrases.state), slot=slot, value=old),),
            told=_sentence(self.rng.choice(self.phrases.change), slot=slot, value=new),
            question=_sentence(self.rng.choice(self.phrases.ask), slot=slot),
            answer=_sentence(ANSWER_FACT, slot=slot, value=new),
            expected=(new,), forbidden=(old,), value_kind=kind, value=new,
        )  # fmt: skip

    def _preference(self) -> _Told:
        category, kind = self.rng.choice(self.phrases.likes)
        value = self.rng.choice(self.phrases.values[kind])
        return _Told(
            before=(),
            told=_sentence(self.rng.choice(self.phrases.like), category=category, value=value),
            question=_sentence(self.rng.choice(self.phrases.ask_like), category=category),
            answer=_sentence(ANSWER_LIKE, value=value),
            expected=(value,), forbidden=(), value_kind=kind, value=value,
        )  # fmt: skip

    def _people(self) -> tuple[list[str], tuple[str, str], list[str], list[str]]:
        """(three names, (verb, base), three values, statements on the first two)."""
        verb, base, kind = self.rng.choice(self.phrases.verbs)
        names = self.rng.sample(self.phrases.names, 3)
        values = self.rng.sample(self.phrases.values[kind], 3)
        statements = [
            _sentence(self.rng.choice(self.phrases.state_verb), name=name, verb=verb, value=value)
            for name, value in zip(names[:2], values[:2], strict=True)
        ]
        return names, (verb, base), values, statements

    def _binding(self) -> _Told:
        names, (verb, base), values, statements = self._people()
        asked = self.rng.randrange(2)
        ask = self.rng.choice(self.phrases.ask_verb)
        shown = dict(name=names[asked], verb=verb, base=base)
        # The asked person's turn is the one that `distance` counts from; where the other one comes
        # later, both are told in that turn.
        both = " ".join(statements)
        return _Told(
            before=(statements[0],) if asked else (),
            told=statements[1] if asked else both,
            question=_sentence(ask, **shown),
            answer=_sentence(ANSWER_VERB, value=values[asked], **shown),
            expected=(values[asked],), forbidden=(values[1 - asked],),
        )  # fmt: skip

    def _not_told(self) -> _Told:
        names, (verb, base), values, statements = self._people()
        together = self.rng.random() < 0.5
        shown = dict(name=names[2], verb=verb, base=base)
        return _Told(
            before=() if together else (statements[0],),
            told=" ".join(statements) if together else statements[1],
            question=_sentence(self.rng.choice(self.phrases.ask_verb), **shown),
            answer=_sentence(ANSWER_UNKNOWN, **shown),
            expected=("did not tell",), forbidden=(values[0], values[1]),
        )  # fmt: skip

    def _reason(self) -> _Told:
        words = dict(
            relation=self.rng.choice(self.phrases.relations),
            event=self.rng.choice(self.phrases.events),
            thing=self.rng.choice(self.phrases.things),
        )
        others = tuple(r for r in self.phrases.relations if r != words["relation"])
        return _Told(
            before=(),
            told=_sentence(self.rng.choice(self.phrases.need), **words),
            question=_sentence(self.rng.choice(self.phrases.ask_reason), **words),
            answer=_sentence(ANSWER_REASON, **words),
            expected=(words["relation"], words["event"]), forbidden=others,
        )  # fmt: skip


def _sentence(template: str, **words: str) -> str:
    """Fill a template; the first letter becomes a capital."""
    text = template.format(**words)
    return text[:1].upper() + text[1:]


def generate(part: str, count: int, seed: int) -> list[Dialogue]:
    """`count` different dialogues of the part "train" or "test", in an order drawn from `seed`.

    Kinds, and distances 1 to 6 within a kind, come equally often (to within one).

    Raises:
        DataError: `count` is negative, or more than the words of the part can give.
    """
    if count < 0:
        raise DataError(f"{count} dialogues were asked for; expected 0 or more")
    writer = _Writer({"train": TRAIN, "test": TEST}[part], random.Random(f"{seed}-{part}"))
    seen: set[tuple[tuple[str, str], ...]] = set()
    dialogues: list[Dialogue] = []
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        distance = 1 + (index // len(KINDS)) % MAX_DISTANCE
        for _ in range(1000):
            dialogue = writer.dialogue(kind, distance)
            if dialogue.turns not in seen:
                break
        else:
            raise DataError(
                f"{count} {part} dialogues were asked for; the words of kind {kind!r} give no new "
                f"one at distance {distance} after {index}; ask for fewer"
            )
        seen.add(dialogue.turns)
        dialogues.append(dialogue)
    writer.rng.shuffle(dialogues)
    return dialogues


def practice(count: int, seed: int) -> list[Dialogue]:
    """`count` different conversations of two turns that need no memory, to train on.

    Raises:
        DataError: more than there are pairs of turns.
    """
    pairs = list(itertools.permutations(PRACTICE, 2))
    if count > len(pairs):
        raise DataError(f"{count} ordinary conversations to train on were asked for; there are "
                        f"{len(pairs)}; ask for fewer")  # fmt: skip
    drawn = random.Random(f"{seed}-practice").sample(pairs, count)
    return [Dialogue(turns=turns, kind="ordinary") for turns in drawn]


def training(count: int, seed: int) -> list[Dialogue]:
    """Memory dialogues and ordinary talk to train on, `count` together, in a drawn order."""
    talk = count // _PRACTICE_SHARE
    rows = generate("train", count - talk, seed) + practice(talk, seed)
    random.Random(f"{seed}-order").shuffle(rows)
    return rows


def ordinary() -> list[Dialogue]:
    """Conversations that need no memory; the last answer of each is known."""
    return [Dialogue(turns=turns, kind="ordinary") for turns in ORDINARY]


def write(output: Path, *, train: int, test: int, seed: int) -> dict[str, int]:
    """Write train, test and ordinary .parquet, and guide.json (a user's script to replay).

    The training file has the four Alpaca columns alone; a sixth of its rows is ordinary talk. A
    file is complete or absent.

    Returns:
        file name -> number of dialogues.

    Raises:
        DataError: see `generate`; or `output` is a file.
    """
    parts = {"train": training(train, seed), "test": generate("test", test, seed)}
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file; expected a directory to write into")
    output.mkdir(parents=True, exist_ok=True)
    _write_parquet(output / "train.parquet", parts["train"], _COLUMNS)
    _write_parquet(output / "test.parquet", parts["test"], _COLUMNS + _SCORED)
    _write_parquet(output / "ordinary.parquet", ordinary(), _COLUMNS)
    guide = json.dumps({"user": list(GUIDE_TURNS)}, indent=2) + "\n"
    with _replacing(output / "guide.json") as temporary:
        temporary.write_text(guide, encoding="utf-8")
    return {"train.parquet": train, "test.parquet": test, "ordinary.parquet": len(ORDINARY),
            "guide.json": 1}  # fmt: skip


def _write_parquet(
    path: Path, dialogues: Sequence[Dialogue], columns: Sequence[tuple[str, pa.DataType]]
) -> None:
    rows = [dialogue.row() for dialogue in dialogues]
    schema = pa.schema(list(columns))
    table = pa.table({name: [row[name] for row in rows] for name, _ in columns}, schema=schema)
    with _replacing(path) as temporary:
        pq.write_table(table, temporary)


class _replacing:
    """Context: a temporary path beside `path` that takes its place if nothing went wrong."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
