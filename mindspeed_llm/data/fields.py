"""Owns checked reading of values inside a row; knows no handler and no file format.

Each function takes the value and the field's name, and raises RowError with what was found.
"""

from __future__ import annotations

import json
from typing import Any

from mindspeed_llm.data.messages import RowError


def kind_of(value: Any) -> str:
    """What a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false",
             int: "a number", float: "a number"}  # fmt: skip
    return "null" if value is None else names.get(type(value), type(value).__name__)


def text_or_empty(value: Any, field: str) -> str:
    """`value` as text; null is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(field, f"{kind_of(value)}, expected text", kind="not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(field, "half of a surrogate pair, which is no character",
                       kind="broken text") from None  # fmt: skip
    return value


def is_text(value: Any) -> bool:
    """Whether `value` is surely what `text` takes; what it says no to, `text` looks at."""
    return isinstance(value, str) and value.isascii() and not (value.isspace() or not value)


def text(value: Any, field: str, what: str) -> str:
    """`value` as text that is more than white space; `what` says what it is for."""
    found = text_or_empty(value, field)
    if not found.strip():
        raise RowError(field, "null" if value is None else "no text", kind=f"empty {what}")
    return found


def json_list(value: Any, field: str, expected: str, *, kind: str) -> list[Any]:
    """`value` as a list; a JSON text of one is read, null and blank text are an empty list."""
    if isinstance(value, str):
        if not value.strip():
            return []
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as err:
            raise RowError(field, f"a text that is not JSON ({err})", kind=kind) from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(field, f"{kind_of(value)}, expected {expected}", kind=kind)
    return value
