"""Owns the names of a prepared data set's files and the manifest that says what is in them.

A data set without a manifest is not finished. It knows no token and no template rule.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.data.packing import Packing
from mindspeed_llm.errors import DataError

SCHEMA = 1
KEYS = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class DatasetFiles:
    """Where the files of the data set `prefix` lie (`--output-prefix`, later `--data-path`)."""

    prefix: Path

    def stem(self, key: str) -> Path:
        """Path of one key without .bin or .idx, as megatron.core's IndexedDataset takes it."""
        return self.prefix.parent / f"{self.prefix.name}_packed_{key}_document"

    def data(self, key: str) -> Path:
        """Tokens of one key."""
        return self.stem(key).with_name(self.stem(key).name + ".bin")

    def index(self, key: str) -> Path:
        """Index of one key."""
        return self.stem(key).with_name(self.stem(key).name + ".idx")

    @property
    def six(self) -> tuple[Path, ...]:
        """The .bin and .idx of each key."""
        return tuple(p for key in KEYS for p in (self.data(key), self.index(key)))

    @property
    def manifest(self) -> Path:
        """What is in the data set; written last."""
        return self.prefix.parent / f"{self.prefix.name}_packed_manifest.json"

    @property
    def report(self) -> Path:
        """What became of every input row."""
        return self.prefix.parent / f"{self.prefix.name}_packed_report.json"

    @property
    def refused(self) -> Path:
        """The same of the last run that was refused; an older data set stays as it is then."""
        return self.prefix.parent / f"{self.prefix.name}_packed_refused.json"

    @property
    def turns(self) -> Path:
        """The turns of each row, see `turns.Turns`; only beside unpacked conversations."""
        return self.prefix.parent / f"{self.prefix.name}_packed_turns.jsonl"

    @property
    def scratch(self) -> Path:
        """Directory of temporaries while a run is under way."""
        return self.prefix.parent / f".{self.prefix.name}_packed.partial"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared data set holds; the same for any number of workers.

    Args:
        rows: rows of the six files: conversations, or packs of them.
        tokens, supervised_tokens: ids, and labels that are not -100, over all rows.
        longest: tokens of the longest conversation.
        tokenizer_sha256: `Tokenizer.sha256`; training must use the same.
        vocab_size, eos_id, pad_id: of that tokenizer.
        template, template_sha256: name and fingerprint of the chat template.
        seq_length: conversations were kept up to this length; None: any.
        packed: whether a row can hold several conversations.
        seed: seed of every random choice made.
        settings: the remaining flags that shape the rows.
        counts: rows by what became of them (see the report).
        inputs: name and size in bytes of each input file.
        files: size in bytes and sha256 of each of the six files, and of the turns, by name.
        versions: of the libraries that made the rows.
        packing: how conversations were packed, exactly when `packed`.
    """

    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int | None
    pad_id: int
    template: str
    template_sha256: str
    seq_length: int | None
    packed: bool
    seed: int
    settings: dict[str, Any]
    counts: dict[str, int]
    inputs: list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    packing: Packing | None = None
    schema: int = field(default=SCHEMA)

    def __post_init__(self) -> None:
        if self.packed != (self.packing is not None):
            raise ValueError(f"packed is {self.packed}, packing {self.packing}")

    def write(self, path: Path) -> None:
        """Write atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, files: DatasetFiles) -> Manifest:
        """Read and check that the six files are there with the sizes it names.

        Raises:
            DataError: no data set, an unfinished one, damaged files, another schema; names all.
        """
        missing = [str(p) for p in files.six if not p.is_file()]
        if missing:
            raise DataError(f"data set {files.prefix}: missing {', '.join(missing)}; expected the "
                            "prefix that was given to preprocess_data.py as "
                            "--output-prefix")  # fmt: skip
        if not files.manifest.is_file():
            raise DataError(f"data set {files.prefix}: no {files.manifest.name}. Preparing it did "
                            "not finish, or another program made it; run preprocess_data.py "
                            "again")  # fmt: skip
        try:
            data = json.loads(files.manifest.read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise DataError(f"{files.manifest}: schema {data['schema']!r}, expected {SCHEMA}; "
                                "run preprocess_data.py again")  # fmt: skip
            if data.get("packing") is not None:
                data["packing"] = Packing(**data["packing"])
            manifest = cls(**data)
        except (ValueError, KeyError, TypeError) as err:
            raise DataError(f"{files.manifest}: not a manifest of this version ({err}); run "
                            "preprocess_data.py again") from err  # fmt: skip
        wrong = [f"{p} has {p.stat().st_size} bytes, not {manifest.files[p.name]['bytes']}"
                 for p in files.six
                 if p.name in manifest.files
                 and p.stat().st_size != manifest.files[p.name]["bytes"]]  # fmt: skip
        wrong += [f"{p} is not named" for p in files.six if p.name not in manifest.files]
        if wrong:
            raise DataError(f"data set {files.prefix}: the files are not those of its manifest: "
                            f"{'; '.join(wrong)}; run preprocess_data.py again")  # fmt: skip
        return manifest


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON through a temporary file beside `path`."""
    temporary = path.with_name(f".{path.name}.partial")
    # A file name that is not UTF-8 holds half surrogates, which become JSON's own escapes.
    temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n",
                         encoding="utf-8", errors="backslashreplace")  # fmt: skip
    os.replace(temporary, path)
