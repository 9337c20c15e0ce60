"""Owns SHA256SUMS: hashes beside files whose format has no manifest of its own.

`sha256sum --check SHA256SUMS` reads it, too. It does not know what the files are.
"""

from __future__ import annotations

import re
from pathlib import Path

from mindspeed_llm.checkpoint import ranks
from mindspeed_llm.checkpoint.assets import flush
from mindspeed_llm.checkpoint.tensor_file import RunningHash
from mindspeed_llm.errors import CheckpointError

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\\\n]{1,400})")
_LIMIT = 4 * 2**20


def write_sums(directory: Path) -> None:
    """Write the hashes of all files below `directory`, flushed to the disk; raises OSError."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    lines = [
        f"{RunningHash().finish(path).sha256}  {path.relative_to(directory).as_posix()}\n"
        for path in files
    ]
    (directory / NAME).write_text("".join(lines), encoding="utf-8")
    flush(directory / NAME)


def check_sums(directory: Path) -> None:
    """Compare files with the hashes beside them, if there are any; the ranks share the work.

    All ranks call it.

    Raises:
        CheckpointError: on every rank, naming a file that is missing or other than it was written.
    """
    if not (directory / NAME).is_file():
        return
    with ranks.together("verifying the checkpoint"):
        entries = _read(directory / NAME)
        for name, sha256 in entries[ranks.rank() :: ranks.world_size()]:
            path = directory / name
            if not path.is_file():
                raise CheckpointError(f"{path}: missing; {NAME} lists it: not copied to the end")
            try:
                found = RunningHash().finish(path).sha256
            except OSError as err:
                raise CheckpointError(f"{path}: cannot read ({err.strerror})") from err
            if found != sha256:
                raise CheckpointError(f"{path}: its sha256 is {found[:12]}, {NAME} says "
                                      f"{sha256[:12]}: damaged; copy it again")  # fmt: skip


def _read(path: Path) -> list[tuple[str, str]]:
    """Names and hashes, the largest files first."""
    if path.stat().st_size > _LIMIT:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; too large for a list of files")
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2].startswith("/") or ".." in match[2].split("/"):
            raise CheckpointError(f"{path}: {line!r:.120} is no hash and the name of a file below")
        entries.append((match[2], match[1]))
    sizes = {name: _size(path.parent / name) for name, _ in entries}
    return sorted(entries, key=lambda entry: (-sizes[entry[0]], entry[0]))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
