"""Owns reading what an evaluation is given: dialogues with known answers, a user's script. It knows
neither models nor scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mindspeed_llm.errors import DataError
from mindspeed_llm.evaluation.dialogues import Dialogue

_ALPACA = ("instruction", "input", "output", "histories")
_SCORED = ("kind", "distance", "expected", "forbidden")


def read_dialogues(path: Path, *, scored: bool) -> list[Dialogue]:
    """Dialogues of a parquet file that `mindspeed-llm dialogues` wrote, or of the same columns.

    Args:
        path: parquet file.
        scored: whether the columns that scoring needs must be there.

    Raises:
        DataError: no such file, not parquet, a column missing, or a row of another shape.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; `mindspeed-llm dialogues --output DIR` writes one")
    wanted = _ALPACA + (_SCORED if scored else ())
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as err:
        raise DataError(f"{path}: not a parquet file ({str(err).splitlines()[0]})") from err
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; there are {', '.join(table.column_names)}"
            + ("; recall is scored on test.parquet of `mindspeed-llm dialogues`" if scored else "")
        )
    rows = table.select(wanted).to_pylist()
    if not rows:
        raise DataError(f"{path}: no rows")
    return [_dialogue(path, number, row, scored) for number, row in enumerate(rows, 1)]


def _dialogue(path: Path, number: int, row: dict[str, Any], scored: bool) -> Dialogue:
    question = "\n".join(text for text in (row["instruction"], row["input"]) if text)
    pairs = row["histories"] or []
    texts = [question, row["output"], *(text for pair in pairs for text in pair or [None])]
    if not question or not all(isinstance(text, str) and text for text in texts):
        raise DataError(f"{path}: row {number}: a turn without text")
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{path}: row {number}: histories; expected [user, assistant] pairs")
    turns = (*(tuple(pair) for pair in pairs), (question, row["output"]))
    if not scored:
        return Dialogue(turns=turns, kind="ordinary")
    if not row["expected"]:
        raise DataError(f"{path}: row {number}: expected is empty; nothing can be scored")
    return Dialogue(
        turns=turns, kind=row["kind"], distance=row["distance"],
        expected=tuple(row["expected"]), forbidden=tuple(row["forbidden"] or ()),
    )  # fmt: skip


def read_script(path: Path) -> list[str]:
    """The user's turns in a JSON file: a list of texts, or {"user": [texts]}.

    Raises:
        DataError: no such file, not JSON, or of another shape.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise DataError(f"--replay {path}: cannot be read: {err.strerror}") from err
    except ValueError as err:
        raise DataError(f"--replay {path}: not JSON: {err}") from err
    turns = found["user"] if isinstance(found, dict) and "user" in found else found
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, str) and turn.strip() for turn in turns)
    ):
        raise DataError(
            f'--replay {path}: expected the user\'s turns, ["...", "..."] or {{"user": [...]}}'
        )
    return turns
