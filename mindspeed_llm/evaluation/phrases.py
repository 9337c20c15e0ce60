"""Owns the shape of mt-recall's words and the forms of its answers; it does not know which words
there are, nor how they become dialogues.

The two parts, training and test, share no name, item or phrasing. What they share on purpose is the
form of an answer, because that is what tuning teaches.
"""

from __future__ import annotations

import dataclasses

ANSWER_FACT = "Your {slot} is {value}."
ANSWER_REASON = "You came to buy {thing} for your {relation}'s {event}."
ANSWER_VERB = "{name} {verb} {value}."
ANSWER_UNKNOWN = "You did not tell me your {slot}."
ANSWER_LIST = "Your {list}: {items}."
ANSWER_COUNT = "{items}: that makes {count}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrases:
    """Everything one part may say. Templates are `str.format` strings; fields name what goes in.

    Attributes:
        values: kind of value -> values of that kind.
        mentions: kind of value -> user turns that mention a `value` nobody will ask for.
        slots: kind of value -> what the user has of that kind.
        state, ask, change: `slot` and `value`: fact, question, update.
        relations, events, things, need, ask_reason: why the user came to buy something.
        verbs: (third person, base form, kind of value) of what people do.
        women, men: first names;  state_verb, ask_verb, ask_she, ask_he: with `name`, `verb`,
            `base`, `value`.
        lists, items: what is put on a list;  add, ask_count: with `list` and `item`; seen: turns
            that mention an item without adding it.
        words: code words of a rule;  rule: with `word`; hears: turns that mention a `word`.
        says, repeat: short texts, and requests to repeat one (`text`), where the rule holds.
        markers: (end of a turn, header of the assistant's) as some template writes them.
        paste: user turns with the text of a `fake` turn in them; broken: statements (`statement`)
            with a marker (`end`, `start`) typed in.
        replies: what the assistant says to a statement;  fillers: ordinary (user, assistant) turns.
    """

    values: dict[str, tuple[str, ...]]
    mentions: dict[str, tuple[str, ...]]
    slots: dict[str, tuple[str, ...]]
    state: tuple[str, ...]
    ask: tuple[str, ...]
    change: tuple[str, ...]
    relations: tuple[str, ...]
    events: tuple[str, ...]
    things: tuple[str, ...]
    need: tuple[str, ...]
    ask_reason: tuple[str, ...]
    verbs: tuple[tuple[str, str, str], ...]
    women: tuple[str, ...]
    men: tuple[str, ...]
    state_verb: tuple[str, ...]
    ask_verb: tuple[str, ...]
    ask_she: tuple[str, ...]
    ask_he: tuple[str, ...]
    lists: tuple[str, ...]
    items: tuple[str, ...]
    add: tuple[str, ...]
    seen: tuple[str, ...]
    ask_count: tuple[str, ...]
    words: tuple[str, ...]
    rule: tuple[str, ...]
    hears: tuple[str, ...]
    says: tuple[str, ...]
    repeat: tuple[str, ...]
    markers: tuple[tuple[str, str], ...]
    paste: tuple[str, ...]
    broken: tuple[str, ...]
    replies: tuple[str, ...]
    fillers: tuple[tuple[str, str], ...]


def split(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(","))


def lines(text: str) -> tuple[str, ...]:
    """One text a line."""
    return tuple(line.strip() for line in text.strip().splitlines())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Lines of two halves with a bar between them."""
    return tuple(
        (first.strip(), second.strip())
        for first, second in (line.split("|", 1) for line in lines(text))
    )


def numbers(first: int) -> tuple[str, ...]:
    """Four digits; those from an even `first` are never those from an odd one."""
    return tuple(str(number) for number in range(1000 + first, 10000, 26))


# The guide's conversation, from the user's side.
GUIDE_TURNS = (
    "My sister's birthday is tomorrow and I need a birthday bouquet.",
    "She likes pink roses. The color is pink.",
    "Here I go again. Remember why I came to buy flowers yesterday?",
)
