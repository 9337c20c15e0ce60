"""Owns which files of a Hugging Face directory travel with the weights, and copies them.

Only files of known names and plain kinds: no code, no weights. It does not read what they say,
except the language model's part of config.json, the dtype in it that `set_dtype` mends, what `Chat`
adds, and whether generation_config.json is an object of JSON: without a tokenizer nobody else opens
that file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mindspeed_llm.checkpoint.tensor_file import FileRecord
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.hf_config import load_json
from mindspeed_llm.models.registry import language_config

CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
ASSETS = (CONFIG, GENERATION, *TOKENIZER_FILES, "LICENSE", "NOTICE")
_WEIGHTS = (".safetensors", ".bin", ".json")

_LIMIT = 256 * 2**20  # bytes of one asset; the largest tokenizers have about 35 MB


@dataclasses.dataclass(frozen=True)
class Chat:
    """How the model talks since it was trained.

    Attributes:
        stop_ids: ids that end an answer; generation_config.json will name them all.
        template: Jinja chat template, for a tokenizer that has none of its own; None: none.
    """

    stop_ids: tuple[int, ...] = ()
    template: str | None = None


def check_links(directory: Path) -> None:
    """Refuse symbolic links out of a Hugging Face directory, but those into its cache's blobs.

    A directory from elsewhere could otherwise make a file of this machine travel with the weights.

    Raises:
        CheckpointError: names the link and where it leads.
    """
    home = directory.resolve()
    places = {home, home.parent.parent / "blobs"}  # cache: snapshots/REVISION/x -> ../../blobs/HASH
    for path in sorted(directory.iterdir()):
        target = path.resolve() if path.is_symlink() else home / path.name
        if path.name in ASSETS or path.suffix in _WEIGHTS:
            if places.isdisjoint(target.parents):
                raise CheckpointError(
                    f"{path}: a link to {target}, outside of the directory; only those of Hugging "
                    "Face's cache are followed: put the file itself there"
                )


def copy_assets(
    source: Path, target: Path, tokenizer: Path | None = None, chat: Chat | None = None
) -> list[FileRecord]:
    """Copy the known files of `source` into the new directory `target`, flushed to the disk.

    Args:
        tokenizer: directory to take the tokenizer files from, instead of `source`.
        chat: what training on conversations adds to these files.

    Raises:
        CheckpointError: no config.json, a generation_config.json that is no JSON object, or a file
            too large to be what its name says.
    """
    if not (source / CONFIG).is_file():
        raise CheckpointError(f"{source}: no {CONFIG}; expected a Hugging Face model directory")
    for place in (source, *([] if tokenizer is None else [tokenizer])):
        check_links(place)
    if (source / GENERATION).is_file():
        _check_object(source / GENERATION)
    target.mkdir()
    records = []
    for name in ASSETS:
        place = tokenizer if tokenizer is not None and name in TOKENIZER_FILES else source
        path = place / name
        if not path.is_file():
            continue
        if path.stat().st_size > _LIMIT:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes; too large for this file")
        if name != CONFIG or not _write_language_config(path, target / name):
            shutil.copyfile(path, target / name)
        records.append(flush(target / name))
    if chat is None:
        return records
    if _add_stop_ids(target, chat.stop_ids):
        records = [record for record in records if record.name != GENERATION]
        records.append(flush(target / GENERATION))
    if chat.template is not None and not _has_template(target):
        (target / CHAT_TEMPLATE).write_text(chat.template, encoding="utf-8")
        records.append(flush(target / CHAT_TEMPLATE))
    return records


def _write_language_config(source: Path, target: Path) -> bool:
    """Write config.json of the language model alone, where `source` describes more; whether so."""
    values = load_json(source)
    text = language_config(values)
    if text is values:
        return False
    target.write_text(json.dumps(text, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def _check_object(path: Path) -> None:
    """Raise CheckpointError unless a small file holds one JSON object."""
    if path.stat().st_size > _LIMIT:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; too large for this file")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no JSON ({error}); mend the file, or remove it") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, expected a JSON object; "
                              "mend the file, or remove it")  # fmt: skip


def _has_template(directory: Path) -> bool:
    """Whether a tokenizer there has a chat template, in any of the places of transformers."""
    if any((directory / name).is_file() for name in (CHAT_TEMPLATE, "chat_template.json")):
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_bytes()).get("chat_template"))


def _add_stop_ids(directory: Path, stop_ids: Sequence[int]) -> bool:
    """Make generation_config.json name `stop_ids` beside its own; whether it had to change.

    Without the file transformers and vLLM stop at config.json's ids only, so these are kept too.
    """
    if not stop_ids:
        return False
    path = directory / GENERATION
    said = json.loads((path if path.is_file() else directory / CONFIG).read_text(encoding="utf-8"))
    values = said if path.is_file() else {
        key: said[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in said
    }  # fmt: skip
    own = values.get("eos_token_id")
    known = own if isinstance(own, list) else [] if own is None else [own]
    ids = list(dict.fromkeys([*known, *stop_ids]))
    if ids == known:
        return False
    values["eos_token_id"] = ids
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def flush(path: Path) -> FileRecord:
    """Flush a small file to the disk; its size and sha256."""
    with open(path, "rb") as file:
        data = file.read()
        os.fsync(file.fileno())
    return FileRecord(path.name, len(data), hashlib.sha256(data).hexdigest())


def write_json(path: Path, data: object) -> FileRecord:
    """Write JSON to the new file `path`, flushed to the disk."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return flush(path)


def set_dtype(config: Path, dtype: torch.dtype) -> bool:
    """Make config.json name `dtype` as that of the stored weights; whether it had to change."""
    values = json.loads(config.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    key = "dtype" if "dtype" in values else "torch_dtype"
    if str(values.get(key, "float32")).removeprefix("torch.") == name:
        return False
    values[key] = name
    config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def sync_tree(directory: Path) -> None:
    """Flush the files of a directory (none deeper), and its entries, to the disk."""
    for path in [*directory.iterdir(), directory]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
