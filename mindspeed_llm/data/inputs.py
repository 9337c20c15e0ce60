"""Owns which files `--input` names, their formats, weights and columns, and unpacking `.gz`.

It reads no row; it knows no handler and no template.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow

from mindspeed_llm.data import tables, texts
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)
Format = Literal["parquet", "arrow", "csv", "json", "jsonl", "txt"]
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv",
                               ".json": "json", ".jsonl": "jsonl", ".txt": "txt"}  # fmt: skip
_PACKED = ".gz"
_WRITTEN_HERE = ("_packed_manifest.json", "_packed_report.json", "_packed_refused.json",
                 "_packed_turns.jsonl")  # fmt: skip
_WEIGHT = re.compile(r"(?P<path>.+):(?P<weight>[-+]?[\d.][\d.eE+-]*|nan|inf)", re.DOTALL)
_EXPECTED = f"{', '.join(SUFFIXES)}, each also with {_PACKED}"


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: as the user knows it.
        format: how its rows are written; a .json file of lines counts as jsonl.
        columns: of its schema or header, in order; None where every row has its own.
        source: which `--input` value it belongs to.
        unpacked: where the decompressed bytes lie, for a .gz.
    """

    path: Path
    format: Format
    columns: tuple[str, ...] | None = None
    source: int = 0
    unpacked: Path | None = None

    @property
    def data(self) -> Path:
        """The file to read."""
        return self.unpacked or self.path

    @property
    def is_packed(self) -> bool:
        """Whether it has to be decompressed first."""
        return self.unpacked is None and self.path.suffix.lower() == _PACKED


def split_weights(inputs: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Paths of `--input` and their weights (`PATH:WEIGHT`), None where there are none.

    A value that exists as it stands is a path, whatever colons it has.

    Raises:
        ConfigError: some have weights and some have not, or a weight is not a positive number.
    """
    paths: list[str] = []
    weights: list[float | None] = []
    for text in inputs:
        match = None if Path(text).exists() else _WEIGHT.fullmatch(text)
        paths.append(match["path"] if match else text)
        weights.append(_weight(text, match["weight"]) if match else None)
    given = [w for w in weights if w is not None]
    if not given:
        return tuple(paths), None
    if len(given) < len(paths):
        without = ", ".join(p for p, w in zip(paths, weights, strict=True) if w is None)
        raise ConfigError(f"--input: no weight for {without}; give one for every path "
                          "(PATH:WEIGHT), or none at all")  # fmt: skip
    return tuple(paths), tuple(given)


def _weight(text: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"--input {text}: weight {number!r}; expected a positive number")
    return weight


def find_inputs(inputs: Sequence[str]) -> list[InputFile]:
    """Files of paths, directories expanded recursively in name order, hidden files left out.

    Raises:
        DataError: a path that is missing, empty, unreadable, or of no known format; names it.
    """
    found: list[InputFile] = []
    for source, text in enumerate(inputs):
        path = Path(text)
        if path.is_dir():
            found += [_inspect(InputFile(p, _format(p), None, source)) for p in _inside(path)]
        elif not path.exists():
            raise DataError(f"--input {text}: no such file or directory")
        elif not path.is_file():
            raise DataError(f"--input {text}: neither a file nor a directory")
        elif _suffix(path) not in SUFFIXES:
            raise DataError(f"--input {path}: unknown format {_suffix(path)!r}; expected one of "
                            f"{_EXPECTED}")  # fmt: skip
        else:
            found.append(_inspect(InputFile(path, _format(path), None, source)))
    return found


def _inside(directory: Path) -> list[Path]:
    everything = [p for p in sorted(directory.rglob("*"))
                  if p.is_file() and not _is_hidden(p.relative_to(directory))]  # fmt: skip
    inside = [p for p in everything
              if _suffix(p) in SUFFIXES and not p.name.endswith(_WRITTEN_HERE)]  # fmt: skip
    others = sorted({*everything}.difference(inside))
    if others:
        _log.warning("--input %s: not read, since only %s are: %s", directory, _EXPECTED,
                     ", ".join(map(str, others)))  # fmt: skip
    if not inside:
        raise DataError(f"--input {directory}: no {', '.join(SUFFIXES)} file in this directory")
    return inside


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _suffix(path: Path) -> str:
    name = Path(path.stem) if path.suffix.lower() == _PACKED else path
    return name.suffix.lower()


def _format(path: Path) -> Format:
    return SUFFIXES[_suffix(path)]


def unpack(file: InputFile, folder: Path, number: int) -> InputFile:
    """A .gz decompressed into `folder`, so that processes can share it; others as they are.

    Raises:
        DataError: damaged, cut off, or more than the disk holds.
    """
    if not file.is_packed:
        return file
    target = folder / f"input-{number:06d}"
    try:
        with gzip.open(file.path, "rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (OSError, EOFError, zlib.error) as err:
        raise DataError(f"--input {file.path}: cannot be decompressed: {err}") from err
    return _inspect(dataclasses.replace(file, unpacked=target))


def _inspect(file: InputFile) -> InputFile:
    """The file with what a look at its beginning tells."""
    format, columns = file.format, file.columns
    try:
        if file.data.stat().st_size == 0:
            raise DataError(f"--input {file.path}: the file is empty")
        if file.is_packed:
            return file
        if format not in ("parquet", "arrow") and texts.is_utf16(file.data):
            raise ValueError("it is UTF-16; save it as UTF-8")
        if format in ("parquet", "arrow"):
            columns = tuple(tables.schema(file.data, format).names)
        elif format == "csv":
            columns, _ = texts.csv_header(file.data)
        elif format == "txt":
            columns = (texts.TEXT,)
        elif format == "json" and not texts.is_array(file.data):
            format = "jsonl"
    except (OSError, ValueError, pyarrow.ArrowException) as err:
        raise DataError(f"--input {file.path}: cannot be read as {format}: {err}") from err
    twice = [name for name, count in Counter(columns or ()).items() if count > 1]
    if twice:
        raise DataError(f"--input {file.path}: two columns called "
                        f"{', '.join(map(repr, twice))}; rename one of them")  # fmt: skip
    return dataclasses.replace(file, format=format, columns=columns)
