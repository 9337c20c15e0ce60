"""Owns the directory layout: where a checkpoint lies, when it counts as written, if it is whole.

It knows nothing of what the tensors mean. A root has the file latest_checkpointed_iteration.txt
("release", or the iteration as a number) and directories `release` or `iter_0000120` with
*.safetensors, index.json, common.json, hf/ and MANIFEST.json. Each is filled under a temporary
name, flushed to the disk and renamed; MANIFEST.json is written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from mindspeed_llm.checkpoint import ranks
from mindspeed_llm.checkpoint.assets import CONFIG, Chat, copy_assets, write_json
from mindspeed_llm.checkpoint.store import (
    ChunkReader,
    Stored,
    index_from_json,
    index_to_json,
)
from mindspeed_llm.checkpoint.tensor_file import FileRecord
from mindspeed_llm.checkpoint.tracker import (
    HF,
    TRACKER,
    find_foreign,
    iteration_name,
    read_tracker,
)
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.logging import get_logger

MANIFEST = "MANIFEST.json"
INDEX = "index.json"
COMMON = "common.json"
FORMAT = "mindspeed-llm checkpoint"
VERSION = 1

Verify = Literal["full", "size"]
"""How much of a checkpoint is checked before it is read: sha256 and size of every file that is
needed (the default; about 1 GB/s a process, shared among the processes), or sizes only."""

_log = get_logger(__name__)
_BLOCK = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class CheckpointDir:
    """A complete checkpoint on the disk. `iteration` is None for converted weights ("release")."""

    path: Path
    iteration: int | None
    files: dict[str, FileRecord]

    @property
    def hf_dir(self) -> Path:
        """config.json, generation_config.json and tokenizer of the source model."""
        return self.path / HF

    def common(self) -> dict[str, Any]:
        """common.json: state and facts; checked against the manifest."""
        return self._json(COMMON)

    def reader(self, *, hashed: bool = False) -> ChunkReader:
        """Reader of all tensors; checks the index, but not the tensor files.

        These are checked by `verify` before, or with `hashed` by `compare` after they were read.
        """
        index = index_from_json(self._json(INDEX), str(self.path / INDEX))
        unlisted = {c.file for s in index.values() for c in s.chunks} - set(self.files)
        if unlisted:
            raise CheckpointError(
                f"{self.path / INDEX}: {sorted(unlisted)[0]} is not in {MANIFEST}"
            )
        return ChunkReader(self.path, index, hashed=hashed)

    def compare(self, records: Iterable[FileRecord]) -> None:
        """Raise CheckpointError unless files that were read are those of the manifest."""
        for record in records:
            if record != self.files[record.name]:
                raise _damaged(self.path, record.name)

    def _json(self, name: str) -> dict[str, Any]:
        check_file(self.path, self.files[name], "full")
        return json.loads((self.path / name).read_bytes())


def find_checkpoint(root: Path) -> CheckpointDir:
    """The checkpoint that `root`'s tracker names, or `root` itself if it is one.

    Raises:
        CheckpointError: nothing there, half-written, of another format, or a file has another size.
    """
    root = Path(root)
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such directory; expected a checkpoint made by "
                              "convert_ckpt.py or by training")  # fmt: skip
    if (root / MANIFEST).is_file():
        return _open(root)
    tracker = root / TRACKER
    if not tracker.is_file():
        raise CheckpointError(f"{root}: {_what_is_it(root)}")
    path = root / iteration_name(read_tracker(root))
    if not path.exists():
        path = _set_aside(path) or path
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path}: named by {TRACKER}, but {_what_is_it(path)}{_older(path)}")
    return _open(path)


def is_checkpoint_root(root: Path) -> bool:
    """Whether `root` has a tracker or is a checkpoint itself (it may still be damaged)."""
    return (Path(root) / TRACKER).is_file() or (Path(root) / MANIFEST).is_file()


def is_hf_directory(root: Path) -> bool:
    """Whether `root` looks like a Hugging Face model: config.json and weights."""
    return (root / CONFIG).is_file() and any(
        any(root.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")
    )


def model_directory(root: Path) -> Path:
    """Where config.json and the tokenizer of `root` are: a Hugging Face directory is its own."""
    root = Path(root)
    if not is_checkpoint_root(root) and is_hf_directory(root):
        return root
    foreign = find_foreign(root)
    return find_checkpoint(root).hf_dir if foreign is None else foreign.hf_dir


def _open(path: Path) -> CheckpointDir:
    where = path / MANIFEST
    try:
        manifest = json.loads(where.read_bytes())
        if manifest["format"] != FORMAT or type(manifest["version"]) is not int:
            raise ValueError(f"format is {manifest['format']!r:.80}")
        files = {n: FileRecord(n, r["size"], r["sha256"]) for n, r in manifest["files"].items()}
        iteration = manifest["iteration"]
        if not (iteration is None or type(iteration) is int):
            raise ValueError(f"iteration is {iteration!r:.80}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as err:
        raise CheckpointError(f"{where}: damaged ({err!r:.200}){_older(path)}") from None
    if manifest["version"] > VERSION:
        raise CheckpointError(f"{where}: format version {manifest['version']}, this release reads "
                              f"up to {VERSION}; upgrade mindspeed-llm")  # fmt: skip
    for name in (INDEX, COMMON):
        if name not in files:
            raise CheckpointError(f"{where}: does not list {name}; damaged{_older(path)}")
    for name, record in files.items():
        parts = Path(name).parts
        if not parts or ".." in parts or Path(name).is_absolute() or len(parts) > 2:
            raise CheckpointError(f"{where}: lists {name!r}, which is not a file of a checkpoint")
        check_file(path, record, "size")
    return CheckpointDir(path, iteration, files)


def check_file(directory: Path, record: FileRecord, mode: Verify) -> None:
    """Raise CheckpointError unless the file has the size (and sha256) of `record`."""
    path = directory / record.name
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{path}: missing{_older(directory)}")
    size = path.stat().st_size
    if size != record.size:
        raise CheckpointError(f"{path}: {size} bytes, {MANIFEST} says {record.size}: damaged or "
                              f"not copied to the end{_older(directory)}")  # fmt: skip
    if mode == "size":
        return
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BLOCK, max(size, 1))))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    if digest.hexdigest() != record.sha256:
        raise _damaged(directory, record.name)


def _damaged(directory: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{directory / name}: its sha256 is not the one in {MANIFEST}: the file "
                           f"is damaged{_older(directory)}")  # fmt: skip


def verify(checkpoint: CheckpointDir, names: Iterable[str], mode: Verify) -> None:
    """Check the files `names` of a checkpoint; the ranks share the work. All ranks call it.

    Raises:
        CheckpointError: on every rank, naming the first damaged file.
    """
    ordered = sorted(set(names), key=lambda name: (-checkpoint.files[name].size, name))
    with ranks.together("verifying the checkpoint"):
        for name in ordered[ranks.rank() :: ranks.world_size()]:
            check_file(checkpoint.path, checkpoint.files[name], mode)


def _what_is_it(path: Path) -> str:
    if (foreign := find_foreign(path)) is not None:
        return (f"it is a pickled {foreign.kind} checkpoint of Megatron-LM: its weights are read "
                "with --trust-pickle, but its run is not continued")  # fmt: skip
    if any(path.glob("**/mp_rank_*")) or any(path.glob("**/*.distcp")):
        return (f"it holds parts of a pickled checkpoint of Megatron-LM (mp_rank or torch_dist); a "
                f"whole one has {TRACKER} above it, and torch_dist .metadata and metadata.json "
                "beside its files")  # fmt: skip
    if is_hf_directory(path):
        return ("it is a Hugging Face model; convert it with convert_ckpt.py --load-model-type hf "
                "--save-model-type mg")  # fmt: skip
    if any(path.glob("iter_*")) or (path / "release").exists():
        return f"there is no {TRACKER}; write the iteration to load into it"
    return "it is no checkpoint, or was not written to the end"


def _older(path: Path) -> str:
    """The mend for a damaged checkpoint: the newest complete older one, if there is any."""
    siblings = sorted(path.parent.glob("iter_*"), reverse=True)
    for other in siblings:
        whole = re.fullmatch(r"iter_([0-9]{7,})", other.name) and (other / MANIFEST).is_file()
        if whole and other.name < path.name:
            return (f"; {other.name} is complete: write {int(other.name[5:])} into "
                    f"{path.parent / TRACKER} to use it")  # fmt: skip
    return ""


class Staging:
    """A checkpoint being written: a temporary directory beside its final place.

    Made by rank 0 with `begin`; `commit` gives it its name, `discard` removes it.
    """

    def __init__(self, root: Path, path: Path, iteration: int | None, new_root: bool) -> None:
        self.root, self.path, self.iteration = root, path, iteration
        self._new_root = new_root

    @classmethod
    def begin(cls, root: Path, iteration: int | None) -> Staging:
        """Make the root and an empty temporary directory in it; clear what dead writers left."""
        new_root = not root.exists()
        root.mkdir(parents=True, exist_ok=True)
        _clear_dead(root)
        path = root / _being_written(iteration_name(iteration))
        path.mkdir()
        return cls(root, path, iteration, new_root)

    def write_documents(
        self,
        index: Mapping[str, Stored],
        common: Mapping[str, Any],
        hf_assets: Path,
        tokenizer: Path | None = None,
        chat: Chat | None = None,
    ) -> list[FileRecord]:
        """Write index.json, common.json and hf/ (see `copy_assets`); their records."""
        records = [
            write_json(self.path / INDEX, index_to_json(index)),
            write_json(self.path / COMMON, common),
        ]
        for record in copy_assets(hf_assets, self.path / HF, tokenizer, chat):
            records.append(FileRecord(f"{HF}/{record.name}", record.size, record.sha256))
        return records

    def commit(self, records: Iterable[FileRecord]) -> CheckpointDir:
        """Write MANIFEST.json, flush, rename to the final name, then move the tracker.

        `records` are all files, with names relative to the directory. An earlier directory of the
        same name is replaced; until the rename it stays the valid one.

        Raises:
            CheckpointError: a file is not there with its size (a rank wrote to another disk?).
        """
        files = {record.name: record for record in records}
        for record in files.values():
            path = self.path / record.name
            if not path.is_file() or path.stat().st_size != record.size:
                raise CheckpointError(f"{path}: written by a rank, but not visible to rank 0; the "
                                      "save directory must be shared by all machines")  # fmt: skip
        table = {n: {"size": r.size, "sha256": r.sha256} for n, r in sorted(files.items())}
        manifest = {"format": FORMAT, "version": VERSION, "iteration": self.iteration}
        write_json(self.path / MANIFEST, manifest | {"files": table})
        final = self.name([self.path, *{p.parent for p in map(self.path.joinpath, files)}])
        return CheckpointDir(final, self.iteration, files)

    def name(self, directories: Iterable[Path]) -> Path:
        """Give the finished directory its name, then move the tracker; `directories` are flushed.

        Their files are on the disk already. An earlier directory of the same name is replaced.
        """
        for directory in directories:
            sync_directory(directory)
        final = self.root / iteration_name(self.iteration)
        aside = _exchange(self.path, final)
        word = "release" if self.iteration is None else str(self.iteration)
        replace_text(self.root / TRACKER, word)
        if aside is not None:
            shutil.rmtree(aside)
        return final

    def discard(self) -> None:
        """Remove the temporary directory, and the root if `begin` made it for nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._new_root and self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()


def _set_aside(path: Path) -> Path | None:
    """What a writer that died between its two renames had moved out of the way."""
    for other in path.parent.glob(f"{path.name}.old-*"):
        if (other / MANIFEST).is_file():
            _log.warning("%s was being replaced; the former one is used", path)
            return other
    return None


def staging_beside(target: Path) -> Path:
    """Name of a directory while it is written; what dead writers of `target` left is removed."""
    _clear_dead(target.parent, f"{target.name}.")
    return target.with_name(_being_written(target.name))


def put_in_place(staging: Path, target: Path) -> None:
    """Give a finished directory its name; what has that name is replaced and removed."""
    aside = _exchange(staging, target)
    if aside is not None:
        shutil.rmtree(aside)


def _exchange(staging: Path, target: Path) -> Path | None:
    """Give `staging` the name of `target`; where a former one now is, to be removed. It keeps its
    name when that fails."""
    aside = None
    if target.is_dir() and any(target.iterdir()):
        aside = target.with_name(f"{target.name}.old-{secrets.token_hex(4)}")
        os.replace(target, aside)
    try:
        os.replace(staging, target)
    except OSError:
        if aside is not None:
            os.replace(aside, target)
        raise
    sync_directory(target.parent)
    return aside


def _being_written(name: str) -> str:
    return f"{name}.tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _clear_dead(root: Path, prefix: str = "") -> None:
    """Remove temporary directories of processes of this machine that are no more."""
    for path in root.glob("*.tmp-*"):
        if not path.name.startswith(f"{prefix}tmp-" if prefix else ""):
            continue
        match = re.fullmatch(r".*\.tmp-(.*)-([0-9]+)-[0-9a-f]{8}", path.name)
        if match and match[1] == socket.gethostname() and not _alive(int(match[2])):
            _log.warning("removing %s, which a run that died left half-written", path)
            shutil.rmtree(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def replace_text(path: Path, text: str) -> None:
    """Write a small text file so that readers see the old or the new one, never half of it."""
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    with open(temporary, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory's own entries, so that a rename survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
