"""Owns the command line: dataclass fields become flags and flags become checked dataclasses.

A field `load_dir` is the flag `--load-dir`; nothing else knows how a flag is spelled.
It does not know what any setting means: the dataclasses check themselves in `__post_init__`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mindspeed_llm.errors import ConfigError


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: Sequence[Any] | None = None,
    aliases: Sequence[str] = (),
    negative: str | None = None,
    metavar: str | None = None,
    positional: bool = False,
) -> Any:
    """Dataclass field that is also a command-line flag.

    Args:
        default: value without the flag; left out, the flag is required.
        help: one line for `--help`.
        choices: allowed values.
        aliases: other spellings of the flag, with their dashes.
        negative: for a bool that is True by default, the flag that switches it off
            (default `--no-<name>`).
        metavar: placeholder in `--help`.
        positional: given as `VALUE`, without its flag.
    """
    metadata = {"help": help, "choices": choices, "aliases": tuple(aliases),
                "negative": negative, "metavar": metavar, "positional": positional}  # fmt: skip
    if isinstance(default, (list, dict)):
        raise TypeError("a mutable default; use a tuple or None")
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(name: str) -> str:
    """The flag of a field: `load_dir` -> `--load-dir`."""
    return "--" + name.replace("_", "-")


def at_least(owner: object, lowest: float, *names: str) -> None:
    """Raise ConfigError unless each named field of `owner` is None or >= `lowest`."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value >= lowest:  # `not >=` also catches nan
            raise ConfigError(f"{flag_of(name)} is {value}; expected {lowest} or more")


class _Parser(argparse.ArgumentParser):
    """argparse that raises ConfigError instead of printing usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message} (see {self.prog} --help)")


def parse(
    argv: Sequence[str],
    *kinds: type,
    prog: str,
    description: str = "",
    always: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Read `argv` into one instance of each dataclass in `kinds`.

    Args:
        argv: arguments without the program's name.
        kinds: frozen dataclasses whose fields were made with `setting`; names must not repeat.
        prog: command as the user typed it, for messages.
        description: first line of `--help`.
        always: flags of other launchers that state what is always so here (flag, or flag and the
            one value that is true -> what is so); accepted because they are true.
        refused: flags of other launchers that cannot be honoured (flag -> why and what instead).

    Raises:
        ConfigError: missing, repeated or malformed flag, or unknown and refused ones, all of them
            at once; names each and the mend.
    """
    always, refused = always or {}, refused or {}
    parser = _Parser(prog=prog, description=description, allow_abbrev=False,
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    known: list[str] = []
    for kind in kinds:
        group = parser.add_argument_group(kind.__doc__.splitlines()[0] if kind.__doc__ else None)
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            known += _add(group, field, hints[field.name])
    for flag, fact in always.items():
        name, _, value = flag.partition(" ")
        how: dict[str, Any] = {"choices": (value,)} if value else {"action": "store_true"}
        parser.add_argument(name, dest=f"_{name}", help=f"always so: {fact}", **how)
        known.append(name)
    values, rest = parser.parse_known_args(list(argv))
    if rest:
        raise ConfigError(_leftover(prog, rest, known, refused))
    return tuple(
        kind(**{f.name: _finish(getattr(values, f.name), typing.get_type_hints(kind)[f.name])
                for f in dataclasses.fields(kind)})
        for kind in kinds
    )  # fmt: skip


def _leftover(
    prog: str, rest: Sequence[str], known: Sequence[str], refused: Mapping[str, str]
) -> str:
    """What is wrong with each of the words that no flag took; values of unknown flags are not."""
    flags = list(dict.fromkeys(word.partition("=")[0] for word in rest if _is_flag(word)))
    if not _is_flag(rest[0]) or not flags:
        return f"{prog}: unexpected argument {rest[0]!r} (a value without its flag?)"
    said = [_unknown(flag, known, refused) for flag in flags]
    if len(said) == 1:
        return f"{prog}: {said[0]} (see {prog} --help)"
    return f"{prog}: {len(said)} flags cannot be taken (see {prog} --help)\n  " + "\n  ".join(said)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit()


def _unknown(flag: str, known: Sequence[str], refused: Mapping[str, str]) -> str:
    name = flag.replace("_", "-")
    if name in refused:
        return f"{flag} cannot be honoured here: {refused[name]}"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else "")


def _add(group: Any, field: dataclasses.Field, hint: Any) -> list[str]:
    meta = field.metadata
    flags = [flag_of(field.name), *meta["aliases"]]
    required = field.default is dataclasses.MISSING
    options: dict[str, Any] = {"dest": field.name, "help": meta["help"].replace("%", "%%")}
    base, many = _base_type(hint)
    if base is bool and not many and field.default is True:
        flags = [meta["negative"] or "--no-" + field.name.replace("_", "-")]
        group.add_argument(*flags, action="store_false", default=True, **options)
        return flags
    if base is bool and not many and field.default is False:
        group.add_argument(*flags, action="store_true", default=False, **options)
        return flags
    if meta["positional"]:
        name = field.name.upper()
        group.add_argument(options.pop("dest"), type=_reader(base), metavar=name, **options)
        return []
    if many:
        options["nargs"] = "+"
    group.add_argument(
        *flags,
        type=_reader(base),
        required=required,
        default=None if required else field.default,
        choices=meta["choices"],
        metavar=meta["metavar"] or (None if meta["choices"] else _metavar(base)),
        **options,
    )
    return flags


def _base_type(hint: Any) -> tuple[Any, bool]:
    """(`int | None`) -> (int, False); (`tuple[str, ...]`) -> (str, True)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        assert len(inner) == 1, f"a setting has one type, not {hint}"
        hint = inner[0]
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return typing.get_origin(hint) or hint, False


def _metavar(base: type) -> str:
    return {int: "N", float: "X", Path: "PATH", dict: "JSON", bool: "true|false"}.get(base, "TEXT")


def _reader(base: type) -> Any:
    readers = {bool: _read_bool, dict: _read_json, float: _read_number}
    return readers.get(base, base)


def _read_bool(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")


def _read_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}")
    return value


def _read_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as err:
        raise argparse.ArgumentTypeError(f"not JSON ({err.msg}): {text!r}") from None
    except RecursionError:
        raise argparse.ArgumentTypeError("JSON that is nested too deeply") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {text!r}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for at, key in enumerate(keys) if key in keys[:at]), None)
    if twice is not None:
        raise argparse.ArgumentTypeError(f"JSON with the key {twice!r} twice; keep one of them")
    return dict(pairs)


def _finish(value: Any, hint: Any) -> Any:
    _, many = _base_type(hint)
    return tuple(value) if many and value is not None else value
