"""Owns what a conversation is on the disk: turns with their ids, how each was made, and of which
model and template. It knows no terminal.

A session is JSON. Greedy and seeded replies can be made again from it, id by id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspeed_llm.data.dialogue import Turn
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.inference.manner import Manner
from mindspeed_llm.inference.sampling import Sampling

FORMAT = "mindspeed-llm session 1"
_SAMPLES, _SAMPLE = 256, 4096  # of each weight file: places, bytes at each
_ENDINGS = ("stop", "length", "stop_string", "interrupted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What has to be the same for the same ids to mean, and to become, the same.

    Attributes:
        model: fingerprint of the weights; see `weights_fingerprint`.
        tokenizer: hash of the vocabulary.
        template: name and hash of the chat template.
    """

    model: str
    tokenizer: str
    template: str

    def differences(self, other: Identity) -> list[str]:
        """Names of what is not the same."""
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """How an answer was made.

    Attributes:
        sampling: with the seed of this very answer.
        system: system text then.
        first: place of the first turn that was in the prompt.
        limit: longest reply allowed.
        ending: why it ended.
    """

    sampling: Sampling
    system: str | None
    first: int
    limit: int
    ending: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """A conversation with everything its continuation needs; every turn's note is a `Made`."""

    identity: Identity
    manner: Manner
    system: str | None
    replies: int
    left_out: int
    turns: Sequence[Turn]


def weights_fingerprint(directory: Path, adapter: Path | None = None) -> str:
    """Hash over names, sizes and samples of all safetensors files below `directory`, and below
    `adapter` where there is one.

    Reading 1 MiB of each file tells a model from its tuned successor, in which every weight has
    moved, in no time; it does not prove that no weight differs.
    """
    digest = hashlib.sha256()
    roots = [directory] if adapter is None else [directory, adapter]
    for root, path in ((r, p) for r in roots for p in sorted(r.rglob("*.safetensors"))):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root)}\0{size}\0".encode())
        with path.open("rb") as file:
            for step in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * step // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def write_session(path: Path, session: Session) -> None:
    """Write the file, complete or not at all, readable by its owner alone.

    Raises:
        DataError: it cannot be written.
    """
    row = {
        "format": FORMAT,
        "identity": dataclasses.asdict(session.identity),
        "manner": session.manner.rows(),
        "system": session.system,
        "replies": session.replies,
        "left_out": session.left_out,
        "turns": [
            {"user": turn.user, "ids": turn.answer, "text": turn.text,
             "made": dataclasses.asdict(turn.note)} for turn in session.turns
        ],
    }  # fmt: skip
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(row, file, indent=1)
            file.write("\n")
        os.replace(temporary, path)
    except OSError as err:
        with contextlib.suppress(OSError):  # there may be nothing to clean
            temporary.unlink()
        raise DataError(f"{path}: cannot be written: {err.strerror}") from err


def read_session(path: Path) -> Session:
    """Read what `write_session` wrote.

    Raises:
        DataError: it cannot be read, or is no session; names the field.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: not a session: not JSON ({err})") from err
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        raise DataError(f"{path}: not a session: its format is not {FORMAT!r}")
    field = "identity"
    try:
        identity = Identity(**{k: _text(v) for k, v in row["identity"].items()})
        field = "manner"
        manner = Manner.of(row["manner"])
        field = "system"
        system = None if row["system"] is None else _text(row["system"])
        field = "replies, left_out"
        replies, left_out = _number(row["replies"]), _number(row["left_out"])
        turns = []
        for at, turn in enumerate(row["turns"]):
            field = f"turns[{at}]"
            turns.append(_turn(turn, at))
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as err:
        raise DataError(f"{path}: {field}: not what /save writes ({err!r})") from err
    return Session(identity=identity, manner=manner, system=system, replies=replies,
                   left_out=left_out, turns=turns)  # fmt: skip


def _turn(row: dict[str, Any], at: int) -> Turn:
    made = row["made"]
    note = Made(
        sampling=Sampling(**made["sampling"]),
        system=None if made["system"] is None else _text(made["system"]),
        first=_number(made["first"]),
        limit=_number(made["limit"]),
        ending=_ENDINGS[_ENDINGS.index(made["ending"])],
    )
    if note.first > at:
        raise ValueError(f"first is {note.first}")
    return Turn(_text(row["user"]), [_number(i) for i in row["ids"]], _text(row["text"]), note)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no whole number")
    return value
