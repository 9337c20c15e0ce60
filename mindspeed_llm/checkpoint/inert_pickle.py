"""Owns reading a small pickle as inert data: what it names is never imported, called or changed.

torch writes the table of contents of a distributed checkpoint as a pickle of a protocol that its
own weights_only loader does not read. Here the opcodes (https://docs.python.org/3/library/
pickletools.html) only fill lists, tuples, dictionaries and `Made` records; `Name` stands for a
class or function that the pickle asks for. It knows no checkpoint.
"""

from __future__ import annotations

import dataclasses
import pickletools
from typing import Any

from mindspeed_llm.errors import CheckpointError

LIMIT = 256 * 2**20  # bytes; that of a 400B model on 1000 ranks has about 50 MB
_MARK = object()
_PLAIN = frozenset({
    "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE",
    "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "LONG1", "LONG4", "INT", "LONG", "FLOAT", "UNICODE",
})  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Any] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
                          "EMPTY_SET": set}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MEMO = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET")


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that the pickle names; it is not looked up."""

    module: str
    name: str


@dataclasses.dataclass(eq=False)
class Made:
    """An object that unpickling would have made by calling `what` with `args`; it was not called.

    `state` is what would have been set on it.
    """

    what: Name
    args: tuple[Any, ...]
    state: Any = None


def read(data: bytes, where: str) -> Any:
    """The one object of a pickle, made of plain data, `Name` and `Made`.

    Raises:
        CheckpointError: too large, damaged, or with an opcode that plain records do not need.
    """
    if len(data) > LIMIT:
        raise CheckpointError(f"{where}: {len(data)} bytes; too large for a table of contents")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = machine.stack
                if value is _MARK:
                    raise ValueError("no object at its end")
                return value
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError) as err:
        raise CheckpointError(f"{where}: not readable as inert data ({err!r:.200})") from None
    raise CheckpointError(f"{where}: cut short")


class _Machine:
    """The stack and the memo, and what each opcode does to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in _MEMO:
            self._remember(name, argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            getattr(self, f"_{name.lower()}")(argument)

    def _remember(self, name: str, argument: Any) -> None:
        if "GET" in name:
            self.stack.append(self._memo[int(argument)])
        else:
            key = len(self._memo) if name == "MEMOIZE" else int(argument)
            self._memo[key] = self.stack[-1]

    def _above_mark(self) -> list[Any]:
        index = max(i for i, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def _stack_global(self, argument: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is no string")
        self.stack.append(Name(module, name))

    def _reduce(self, argument: None) -> None:
        args, what = self.stack.pop(), self.stack.pop()
        if not (isinstance(what, Name) and isinstance(args, tuple)):
            raise ValueError("a call of something that has no name")
        self.stack.append(Made(what, args))

    _newobj = _reduce

    def _build(self, argument: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Made) or target.state is not None:
            raise ValueError("state for something that takes none")
        target.state = state

    def _tuple(self, argument: None) -> None:
        self.stack.append(tuple(self._above_mark()))

    def _list(self, argument: None) -> None:
        self.stack.append(self._above_mark())

    def _append(self, argument: None) -> None:
        item = self.stack.pop()
        self._target(list).append(item)

    def _appends(self, argument: None) -> None:
        items = self._above_mark()
        self._target(list).extend(items)

    def _additems(self, argument: None) -> None:
        items = self._above_mark()
        self._target(set).update(items)

    def _setitem(self, argument: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._target(dict)[key] = value

    def _setitems(self, argument: None) -> None:
        items = self._above_mark()
        self._target(dict).update(zip(items[::2], items[1::2], strict=True))

    def _dict(self, argument: None) -> None:
        items = self._above_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _target(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"items for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]
