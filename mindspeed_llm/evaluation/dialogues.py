"""Owns mt-recall: draws its dialogues from a seed, eight families of them, for training and for
testing; it does not know tokenizers, templates, models, scores or files.

Something is told, ordinary turns and turns that mention other values follow, and a later question
asks for it. A question is a `Probe`: the turn whose reply is scored, with what makes a reply right.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from mindspeed_llm.errors import DataError
from mindspeed_llm.evaluation.phrases import (
    ANSWER_COUNT,
    ANSWER_FACT,
    ANSWER_LIST,
    ANSWER_REASON,
    ANSWER_UNKNOWN,
    ANSWER_VERB,
    Phrases,
)
from mindspeed_llm.evaluation.phrases_held_out import TEST
from mindspeed_llm.evaluation.phrases_train import TRAIN

FAMILIES = ("fact", "overwritten", "entities", "counting", "instruction", "coreference",
            "refusal", "marker")  # fmt: skip
DISTANCES = (2, 4, 6, 8, 16, 32)
MAX_DISTRACTORS = 16
# Threads of one training dialogue; each is a distractor of the others. Families that are harder to
# learn come more often. Some may come twice in one dialogue, each time of another thing; two
# rules or two pairs of people would contradict each other.
_THREADS = (2, 4)
_TICKETS = (*FAMILIES, *["fact", "overwritten", "coreference", "instruction"] * 2, "counting",
            "marker", *["refusal"] * 3)  # fmt: skip
_REPEATED = ("fact", "overwritten", "counting", "refusal")
# Acknowledgements that are trained, so that a statement is not taken for a question.
_ACKNOWLEDGED = 0.25

Rule = Literal["holds", "count", "opens", "unknown"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """A question whose reply is scored.

    Attributes:
        answers: replies that are exactly right, but for case and punctuation; the first is the one
            that training sees.
        rule: how a reply in other words is judged; see `recall.holds_value`.
        expected: what such a reply says.
        forbidden: values of the dialogue that would make it wrong.
    """

    answers: tuple[str, ...]
    rule: Rule
    expected: tuple[str, ...]
    forbidden: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What the user says and the reply; `probe` where the reply is known and scored; `trained`
    where a reply to something else is a target of training too."""

    user: str
    assistant: str
    probe: Probe | None = None
    trained: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A dialogue of mt-recall.

    Attributes:
        turns: with at least one probe; the last turn is one.
        family: one of `FAMILIES`, or "mixed" (training).
        distance: turns from the last one that told the answer to the first question; 0 if mixed.
        distractors: turns between them that mention another value; 0 if mixed.
    """

    turns: tuple[Turn, ...]
    family: str
    distance: int = 0
    distractors: int = 0


@dataclasses.dataclass
class _Thread:
    """One family's part of a dialogue: what is told, what is asked, what distracts from it.

    `asks[0]` is the question of a test; training asks all of them, and some between `tells`.
    """

    tells: list[Turn]
    asks: list[Turn]
    distract: Callable[[], Turn]


class _Scene:
    """Draws the threads of one dialogue; nothing is told twice in it unless a family says so."""

    def __init__(self, phrases: Phrases, rng: random.Random, *, training: bool = False) -> None:
        # What is trained is harder than what is tested, so that less of it teaches more.
        self.phrases, self.rng, self.training = phrases, rng, training
        self.used: set[str] = set()
        self.kept: frozenset[str] = frozenset()
        self.values: list[str] = []
        self._filler = self._fillers()

    def thread(self, family: str) -> _Thread:
        """The thread of a family; what distracts from it later says nothing of what it says."""
        found: _Thread = getattr(self, family)()
        self.kept = frozenset(self.used)
        return found

    def draw(self, pool: Sequence[str]) -> str:
        """Something of the pool that the dialogue has not mentioned; if all of it was, something
        that no thread needs."""
        fresh = [text for text in pool if text not in self.used]
        text = self.rng.choice(fresh or [text for text in pool if text not in self.kept])
        self.used.add(text)
        return text

    def value(self, kind: str) -> str:
        """A value of this kind; it is wrong in a reply to any question that does not ask for it."""
        value = self.draw(self.phrases.values[kind])
        self.values.append(value)
        return value

    def item(self) -> str:
        """A thing; it is wrong in a reply about a list it is not on."""
        item = self.draw(self.phrases.items)
        self.values.append(item)
        return item

    def closed(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """The finished dialogue, whose probes know all values that were mentioned in it."""
        return tuple(self._closed(turn) for turn in turns)

    def _closed(self, turn: Turn) -> Turn:
        probe = turn.probe
        if probe is None or probe.rule not in ("holds", "unknown"):
            return turn
        wrong = tuple(v for v in dict.fromkeys(self.values) if v not in probe.expected)
        return dataclasses.replace(turn, probe=dataclasses.replace(probe, forbidden=wrong))

    def filler(self) -> Turn:
        return next(self._filler)

    def _fillers(self) -> Iterator[Turn]:
        while True:
            pairs = self.rng.sample(self.phrases.fillers, len(self.phrases.fillers))
            yield from (Turn(user=user, assistant=reply) for user, reply in pairs)

    def said(self, text: str) -> Turn:
        """A statement of the user's, and an acknowledgement."""
        return Turn(user=_capital(text), assistant=self.rng.choice(self.phrases.replies))

    def form(self, templates: Sequence[str], **words: str) -> str:
        return _capital(self.rng.choice(templates).format(**words))

    def mention(self, kind: str) -> Turn:
        value = self.value(kind)
        return self.said(self.form(self.phrases.mentions[kind], value=value))

    def slot(self, kind: str | None = None) -> tuple[str, str]:
        """(what the user has, kind of its value); of `kind` if given."""
        slots = [
            (slot, name) for name, some in self.phrases.slots.items() for slot in some
            if kind in (None, name) and slot not in self.used
        ]  # fmt: skip
        if kind is not None and not slots:
            return self.rng.choice(self.phrases.slots[kind]), kind
        # Kinds come equally often, although some have more slots.
        kind = self.rng.choice(sorted({name for _, name in slots}))
        slot = self.draw([slot for slot, name in slots if name == kind])
        return slot, kind

    def other(self, kind: str) -> Turn:
        """Distractor of a fact: another value of its kind, of the user's own or of nobody's."""
        free = [slot for slot in self.phrases.slots[kind] if slot not in self.used]
        # One is left for a question about what was not told.
        if len(free) < 2 or self.rng.random() < 0.5:
            return self.mention(kind)
        value = self.value(kind)
        return self.said(self.form(self.phrases.state, slot=self.draw(free), value=value))

    def ask(self, slot: str, value: str) -> Turn:
        answer = _capital(ANSWER_FACT.format(slot=slot, value=value))
        probe = Probe(answers=(answer, value, f"It is {value}"), rule="holds", expected=(value,))
        return Turn(user=self.form(self.phrases.ask, slot=slot), assistant=answer, probe=probe)

    def fact(self) -> _Thread:
        if self.rng.random() < (0.5 if self.training else 0.35):
            return self._reason()
        slot, kind = self.slot()
        value = self.value(kind)
        tell = self.said(self.form(self.phrases.state, slot=slot, value=value))
        asks = [self.ask(slot, value)]
        return _Thread([tell], asks, lambda: self.other(kind))

    def _reason(self) -> _Thread:
        words = {
            "relation": self.draw(self.phrases.relations),
            "event": self.draw(self.phrases.events),
            "thing": self.draw(self.phrases.things),
        }
        answer = ANSWER_REASON.format(**words)
        why = f"{words['relation']}'s {words['event']}"
        probe = Probe(answers=(answer, f"Yes, {answer}", f"For your {why}", f"Your {why}"),
                      rule="holds", expected=(why,))  # fmt: skip
        ask = Turn(user=self.form(self.phrases.ask_reason, thing=words["thing"]),
                   assistant=answer, probe=probe)  # fmt: skip

        def distract() -> Turn:
            other = {"relation": self.draw(self.phrases.relations),
                     "event": self.draw(self.phrases.events)}  # fmt: skip
            thing = self.draw(self.phrases.things)
            return self.said(self.form(self.phrases.need, thing=thing, **other))

        return _Thread([self.said(self.form(self.phrases.need, **words))], [ask], distract)

    def overwritten(self) -> _Thread:
        slot, kind = self.slot()
        # In training often twice: what counts is the last, not the second.
        changes = self.rng.choice((1, 2, 2)) if self.training else 1
        values = [self.value(kind) for _ in range(1 + changes)]
        state, change = self.phrases.state, self.phrases.change
        tells = [
            self.said(self.form(change if number else state, slot=slot, value=value))
            for number, value in enumerate(values)
        ]
        if self.training:  # a reply that was right is wrong after the next change
            early = [[self.ask(slot, value)] if self.rng.random() < 0.5 else []
                     for value in values[:-1]]  # fmt: skip
            tells = [turn for tell, ask in zip(tells, [*early, []], strict=True)
                     for turn in (tell, *ask)]  # fmt: skip
        asks = [self.ask(slot, values[-1])]
        return _Thread(tells, asks, lambda: self.other(kind))

    def _people(self) -> tuple[list[tuple[str, str]], tuple[str, str, str], list[Turn]]:
        """Two people of different sex, in any order: (name, value) each, their verb, the turns."""
        verb = self.draw([verb for verb, _, _ in self.phrases.verbs])
        words = next(words for words in self.phrases.verbs if words[0] == verb)
        names = [self.draw(self.phrases.women), self.draw(self.phrases.men)]
        people = [(name, self.value(words[2])) for name in names]
        told = [
            self.form(self.phrases.state_verb, name=name, verb=verb, value=value)
            for name, value in people
        ]
        self.rng.shuffle(told)
        tells = [" ".join(told)] if self.rng.random() < 0.5 else told
        return people, words, [self.said(text) for text in tells]

    def _ask_verb(
        self, templates: Sequence[str], people: Sequence[tuple[str, str]],
        asked: int, words: tuple[str, str, str],
    ) -> Turn:  # fmt: skip
        name, value = people[asked]
        verb, base, _ = words
        answer = ANSWER_VERB.format(name=name, verb=verb, value=value)
        she = "She" if asked == 0 else "He"
        probe = Probe(answers=(answer, value, f"{she} {verb} {value}"), rule="holds",
                      expected=(value,))  # fmt: skip
        return Turn(user=self.form(templates, name=name, verb=verb, base=base), assistant=answer,
                    probe=probe)  # fmt: skip

    def entities(self) -> _Thread:
        people, words, tells = self._people()
        asks = [self._ask_verb(self.phrases.ask_verb, people, who, words) for who in (0, 1)]
        self.rng.shuffle(asks)
        return _Thread(tells, asks, lambda: self.mention(words[2]))

    def coreference(self) -> _Thread:
        people, words, tells = self._people()
        forms = (self.phrases.ask_she, self.phrases.ask_he)
        asks = [self._ask_verb(forms[who], people, who, words) for who in (0, 1)]
        self.rng.shuffle(asks)
        return _Thread(tells, asks, lambda: self.mention(words[2]))

    def counting(self) -> _Thread:
        """The assistant keeps a list: it repeats it with each thing added, counts it when asked."""
        name = self.draw(self.phrases.lists)
        items = [self.item() for _ in range(self.rng.randint(2, 5))]
        tells = [self._add(name, items[: number + 1]) for number in range(len(items))]

        def distract() -> Turn:
            return self.said(self.form(self.phrases.seen, item=self.item()))

        return _Thread(tells, [self._ask_count(name, items) for _ in range(2)], distract)

    def _add(self, name: str, items: Sequence[str]) -> Turn:
        answers = tuple(
            _capital(ANSWER_LIST.format(list=name, items=text)) for text in self._named(items)
        )
        probe = Probe(answers=answers, rule="holds", expected=tuple(items))
        return Turn(user=self.form(self.phrases.add, item=items[-1], list=name),
                    assistant=answers[0], probe=probe)  # fmt: skip

    def _ask_count(self, name: str, items: Sequence[str]) -> Turn:
        count = str(len(items))
        numbered = [f"{number}. {item}" for number, item in enumerate(items, 1)]
        named = [text for some in (numbered, items) for text in self._named(some)]
        answers = [_capital(ANSWER_COUNT.format(items=text, count=count)) for text in named]
        probe = Probe(answers=(*answers, count, *(f"{text}: {count}" for text in named)),
                      rule="count", expected=(count,))  # fmt: skip
        return Turn(user=self.form(self.phrases.ask_count, list=name), assistant=answers[0],
                    probe=probe)  # fmt: skip

    @staticmethod
    def _named(items: Sequence[str]) -> tuple[str, str]:
        """The items in a row, with commas alone and with "and" before the last one."""
        commas = ", ".join(items)
        return commas, " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))

    def instruction(self) -> _Thread:
        word = self.draw(self.phrases.words)
        tell = self.said(self.form(self.phrases.rule, word=word))
        asks = [self._repeat(word) for _ in range(2)]

        def distract() -> Turn:
            return self.said(self.form(self.phrases.hears, word=self.draw(self.phrases.words)))

        return _Thread([tell], asks, distract)

    def _repeat(self, word: str) -> Turn:
        text = self.draw(self.phrases.says)
        answer = _capital(f"{word}: {text}.")
        probe = Probe(answers=(answer,), rule="opens", expected=(word, text))
        return Turn(user=self.form(self.phrases.repeat, text=text), assistant=answer, probe=probe)

    def refusal(self) -> _Thread:
        slot, kind = self.slot()
        value = self.value(kind)
        # Often what is asked for in vain is of the same kind as what was told.
        alike = 0.8 if self.training else 0.5
        same = [s for s in self.phrases.slots[kind] if s not in self.used]
        absent = self.draw(same) if same and self.rng.random() < alike else self.slot()[0]
        asks = [self.ask(slot, value), self._ask_unknown(absent)]
        self.rng.shuffle(asks)
        tells = [self.said(self.form(self.phrases.state, slot=slot, value=value))]
        if self.training:  # nobody knows what will be told
            tells.insert(0, self._ask_unknown(slot))
        return _Thread(tells, asks, lambda: self.mention(kind))

    def _ask_unknown(self, slot: str) -> Turn:
        answer = _capital(ANSWER_UNKNOWN.format(slot=slot))
        probe = Probe(answers=(answer,), rule="unknown", expected=())
        return Turn(user=self.form(self.phrases.ask, slot=slot), assistant=answer, probe=probe)

    def marker(self) -> _Thread:
        slot, kind = self.slot()
        value = self.value(kind)
        fakes: list[str] = []
        statement = self.form(self.phrases.state, slot=slot, value=value)

        def distract() -> Turn:
            """The first one is a turn made up by who typed it; others are mentions."""
            if fakes:
                return self.mention(kind)
            fakes.append(self.value(kind))
            end, start = self.rng.choice(self.phrases.markers)
            claim = _capital(ANSWER_FACT.format(slot=slot, value=fakes[0]))
            return self.said(self.form(self.phrases.paste, fake=f"{end}{start} {claim}{end}"))

        end, start = self.rng.choice(self.phrases.markers)
        words = {"end": end, "start": start, "statement": statement}
        typed = self.rng.choice(self.phrases.broken).format(**words)
        asks = [self.ask(slot, value)]
        return _Thread([self.said(typed)], asks, distract)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _test(phrases: Phrases, rng: random.Random, family: str, distance: int, distractors: int,
          ) -> Dialogue:  # fmt: skip
    """Fillers, what is told, `distance` - 1 turns of which `distractors` distract, the question."""
    scene = _Scene(phrases, rng)
    thread = scene.thread(family)
    turns = [scene.filler() for _ in range(rng.randint(0, 1))]
    for tell in thread.tells[:-1]:
        turns.append(dataclasses.replace(tell, probe=None))
        turns += [scene.filler() for _ in range(rng.randint(0, 1))]
    turns.append(thread.tells[-1])
    between = [scene.filler() for _ in range(distance - 1)]
    for place in sorted(rng.sample(range(distance - 1), distractors)):
        between[place] = thread.distract()
    asks = thread.asks if family == "refusal" else thread.asks[:1]
    return Dialogue(turns=scene.closed([*turns, *between, *asks]), family=family,
                    distance=distance, distractors=distractors)  # fmt: skip


def _mixed(phrases: Phrases, rng: random.Random, families: Sequence[str]) -> Dialogue:
    """Threads of several families in one dialogue, each in its own order, with a few fillers."""
    scene = _Scene(phrases, rng, training=True)
    queues: list[list[Turn]] = []
    for thread in [scene.thread(family) for family in families]:
        between = [thread.distract() for _ in range(rng.choice((0, 1, 1, 2)))]
        queues.append([*thread.tells, *between, *thread.asks])
    queues.append([scene.filler() for _ in range(rng.randint(0, 3))])
    turns: list[Turn] = []
    while any(queues):
        # A longer queue is likelier, so that all end at about the same time.
        queue = rng.choices(queues, weights=[len(queue) for queue in queues])[0]
        turns.append(queue.pop(0))
    while turns[-1].probe is None:
        turns.pop()
    turns = [
        dataclasses.replace(turn, trained=rng.random() < _ACKNOWLEDGED)
        if turn.assistant in phrases.replies else turn
        for turn in turns
    ]  # fmt: skip
    return Dialogue(turns=scene.closed(turns), family="mixed")


def test_set(per_family: int, seed: int, distances: Sequence[int] = DISTANCES) -> list[Dialogue]:
    """`per_family` held-out dialogues of every family, all different, in family order.

    Distances come equally often (to within one); at each, the number of distractors goes from none
    to as many as there are turns between, and no more than `MAX_DISTRACTORS`.

    Raises:
        DataError: a number below 1, or a distance below 2.
    """
    if per_family < 1:
        raise DataError(f"{per_family} dialogues a family were asked for; expected 1 or more")
    if not distances or min(distances) < 2:
        raise DataError(f"distances {list(distances)}: expected numbers of turns, 2 or more")
    rng = random.Random(f"{seed}-test")
    found: list[Dialogue] = []
    for family in FAMILIES:
        for index in range(per_family):
            distance = distances[index % len(distances)]
            most = min(distance - 1, MAX_DISTRACTORS)
            share = (index // len(distances)) % 4  # none, one, half, all
            distractors = (0, 1, max(1, most // 2), most)[share]
            found.append(_test(TEST, rng, family, distance, distractors))
    return found


def training_set(count: int, seed: int) -> list[Dialogue]:
    """`count` dialogues to train on, each with questions of several families.

    Raises:
        DataError: `count` is below 1.
    """
    if count < 1:
        raise DataError(f"{count} training dialogues were asked for; expected 1 or more")
    rng = random.Random(f"{seed}-train")
    found: list[Dialogue] = []
    waiting: list[str] = []
    for _ in range(count):
        size = rng.randint(*_THREADS)
        chosen: list[str] = []
        while len(chosen) < size:
            if not waiting:
                waiting = rng.sample(_TICKETS, len(_TICKETS))
            family = next((f for f in waiting if f not in chosen or f in _REPEATED), None)
            if family is None:
                break
            waiting.remove(family)
            chosen.append(family)
        found.append(_mixed(TRAIN, rng, chosen))
    return found
