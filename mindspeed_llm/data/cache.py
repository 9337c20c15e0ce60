"""Owns data sets that are prepared on demand and kept, one for each content, tokenizer, template
and setting. Knows neither models nor ranks: any number of processes may ask for the same one.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindspeed_llm import __version__
from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.inputs import find_inputs
from mindspeed_llm.data.manifest import SCHEMA, DatasetFiles, Manifest
from mindspeed_llm.data.prepare import Progress, prepare
from mindspeed_llm.data.report import Report
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.errors import DataError, UserError
from mindspeed_llm.logging import get_logger

_log = get_logger(__name__)
CACHE = ".mindspeed_llm_cache"
# What can change the ids that a tokenizer makes, or the chat template that it brings.
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip
_NOT_CONTENT = {"input", "output_prefix", "tokenizer_name_or_path", "workers", "log_interval",
                "show_samples"}  # fmt: skip
_BLOCK = 1 << 20


def is_raw(path: str) -> bool:
    """Whether `path` is a file or directory with conversations, not the prefix of a data set."""
    return Path(path).exists() and not DatasetFiles(Path(path)).manifest.is_file()


def prepared(config: PreprocessConfig, directory: Path,
             progress: Callable[[Progress], None] | None = None) -> Path:  # fmt: skip
    """Prefix of the data set that `config` makes, prepared now unless it lies in `directory`.

    It is found again by what it was made from: the bytes of the input, of the tokenizer's files and
    of the template, and every setting that shapes rows. Of several processes that ask for it at a
    time one prepares it and the others wait; where that one fails, the next tries, so each of them
    ends with the data set or with the error.

    Args:
        config: what to prepare, with one path as input; its output prefix is not used.
        directory: where data sets are kept.
        progress: see `prepare`.

    Raises:
        UserError: see `prepare`; the directory cannot be written; the input changes meanwhile.
    """
    (source,) = config.input
    try:
        find_inputs(config.input)
    except DataError as err:
        raise DataError(f"--data-path {source}: {err}") from err
    before = _sizes(Path(source))
    prefix = directory / f"{Path(source).name.split('.')[0] or 'data'}-{_key(config)[:20]}"

    def make() -> Report:
        report = prepare(dataclasses.replace(config, output_prefix=prefix), progress)
        if _sizes(Path(source)) != before:
            DatasetFiles(prefix).manifest.unlink(missing_ok=True)
            raise DataError("it was changed while it was read; start again")
        return report

    make_once(prefix, source, make, doing=f"preparing {source}", done="prepared")
    return prefix


def make_once(prefix: Path, source: str | Path, make: Callable[[], Report], *, doing: str,
              done: str) -> None:  # fmt: skip
    """Call `make` unless the data set `prefix` is whole; of several processes, one at a time.

    Args:
        prefix: of the data set that `make` makes, in the directory where such are kept.
        source: what it is made from, as --data-path names it.
        make: makes it; its report is logged.
        doing, done: what is being done to what, and what has been, for the log.

    Raises:
        UserError: the directory cannot be written, or what `make` raises, which names `source`.
    """
    directory = prefix.parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / f".{prefix.name}.lock"):
            if is_finished(prefix):
                _log.info("%s is %s already: %s", source, done, prefix)
                return
            _log.info("%s once for all runs like this one: %s", doing, prefix)
            for line in make().lines():
                _log.info("%s", line)
    except OSError as err:
        raise DataError(f"--data-cache-path {directory}: cannot be written ({err.strerror}); "
                        "choose another place") from err  # fmt: skip
    except UserError as err:
        raise type(err)(f"--data-path {source}: {err}") from err


def is_finished(prefix: Path) -> bool:
    """Whether there is a whole data set of this prefix."""
    try:
        Manifest.read(DatasetFiles(prefix))
    except DataError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which processes take in turn."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process is preparing the data; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(config: PreprocessConfig) -> str:
    """Hash of everything that can change a token, a label or the choice of rows."""
    named = None if config.uses_hf_template else config.prompt_type
    settings = {name: value for name, value in dataclasses.asdict(config).items()
                if name not in _NOT_CONTENT}  # fmt: skip
    tokenizer = config.tokenizer_name_or_path
    folder = tokenizer.parent if tokenizer.is_file() else tokenizer
    made_of: dict[str, Any] = {
        "version": [__version__, SCHEMA],
        "input": [[path.suffixes, _sha256(path)] for path in _files(Path(config.input[0]))],
        "tokenizer": [[name, _sha256(folder / name)] for name in _TOKENIZER
                      if (folder / name).is_file()],
        "template": None if named is None else find_template(named).fingerprint(),
        "settings": settings,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted(path for path in source.rglob("*") if path.is_file())


def _sizes(source: Path) -> list[tuple[str, int, int]]:
    found = [(path, os.stat(path)) for path in _files(source)]
    return [(str(path), state.st_size, state.st_mtime_ns) for path, state in found]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
