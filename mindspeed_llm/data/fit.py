"""Owns fitting a prepared data set to a training run: rows over its length are shortened as
preparing would have done, and rows share packs. The result is a data set of its own, kept and found
again by content. Knows neither models nor ranks: any number of processes may ask for the same one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_llm import __version__
from mindspeed_llm.data.cache import make_once
from mindspeed_llm.data.chat_template import ChatTemplate
from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.manifest import DatasetFiles, Manifest, write_json
from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.packing import Packing
from mindspeed_llm.data.plain_text import TEMPLATE as PLAIN_TEXT
from mindspeed_llm.data.plain_text import cut
from mindspeed_llm.data.render import Rendered, Renderer
from mindspeed_llm.data.report import KEPT, OVER_LENGTH, TRUNCATED, Made, Report, Tally
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.data.turns import Shortener, Turns
from mindspeed_llm.data.writer import (
    PreparedShard,
    Shard,
    exclusive_scratch,
    index_lengths,
    pack_rows,
    write_ordered,
)
from mindspeed_llm.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What rows have to be, with the names and meanings of preprocess_data.py.

    Args:
        seq_length: longest row in tokens; of packed rows, their length.
        truncation: what becomes of longer ones.
        pack: whether rows are packed.
        pad_to_multiple_of: of packed rows: each conversation begins at a multiple of this.
    """

    seq_length: int
    truncation: str = "drop"
    pack: bool = False
    pad_to_multiple_of: int = 1


def fitted(prefix: Path, directory: Path, fit: Fit,
           tokenizer: Callable[[], Tokenizer]) -> Path:  # fmt: skip
    """Prefix of a data set whose rows are those of `prefix` made to fit; `prefix` where they do.

    A data set that is packed already stays as it is. Of several processes that ask for the same
    one at a time one makes it and the others wait.

    Args:
        prefix: a prepared data set.
        directory: where fitted data sets are kept.
        fit: what rows have to be.
        tokenizer: gives that of the data set; called where turns have to be dropped.

    Raises:
        UserError: no such data set; it lacks what the policy needs, or has another tokenizer or
            template; --truncation error and a row is too long; no row is left; the directory cannot
            be written.
    """
    files = DatasetFiles(prefix)
    manifest = Manifest.read(files)
    if manifest.packing is not None:
        return prefix
    lengths = index_lengths(files.index("input_ids"))
    long = np.flatnonzero(lengths > fit.seq_length)
    if not fit.pack and (fit.truncation == "drop" or not len(long)):
        return prefix  # what is over the length is left out when rows are opened
    where = f"--data-path {prefix}"
    _check(where, files, manifest, fit, len(long), len(lengths))
    target = directory / f"{prefix.name}-{_key(manifest, fit)[:20]}"
    run = _Run(files, manifest, DatasetFiles(target), fit)
    doing = f"fitting {prefix} to --seq-length {fit.seq_length}"
    make_once(target, prefix, lambda: run.make(lengths, long, tokenizer),
              doing=doing, done="fitted")  # fmt: skip
    return target


def _check(where: str, files: DatasetFiles, manifest: Manifest, fit: Fit, long: int,
           rows: int) -> None:  # fmt: skip
    policy = fit.truncation
    if fit.seq_length % fit.pad_to_multiple_of and fit.pack:
        raise DataError(f"--seq-length {fit.seq_length} is not a multiple of --pad-to-multiple-of "
                        f"{fit.pad_to_multiple_of}")  # fmt: skip
    if not long or policy == "drop":
        return
    if policy == "error":
        raise DataError(f"{where}: {long} of {rows} rows have more tokens than --seq-length "
                        f"{fit.seq_length} (--truncation error)")  # fmt: skip
    if (policy == "split") != (manifest.template == PLAIN_TEXT):
        raise DataError(f"{where}: --truncation {policy} is for "
                        f"{'plain texts' if policy == 'split' else 'conversations'}, and its "
                        f"template is {manifest.template}")  # fmt: skip
    if policy != "split" and files.turns.name not in manifest.files:
        raise DataError(f"{where}: --truncation {policy} needs the turns of its rows, and it was "
                        "prepared without; run preprocess_data.py again")  # fmt: skip
    if policy != "split":
        size = files.turns.stat().st_size if files.turns.is_file() else None
        if size != manifest.files[files.turns.name]["bytes"]:
            raise DataError(f"{where}: --truncation {policy} needs {files.turns.name}, which is "
                            "missing or not that of its manifest; copy it beside the other files, "
                            "or run preprocess_data.py again")  # fmt: skip


def _key(manifest: Manifest, fit: Fit) -> str:
    """Hash of every token, label and turn, and of what is made of them."""
    content = sorted((name.rpartition("_packed_")[2], file["sha256"])
                     for name, file in manifest.files.items())  # fmt: skip
    made_of = {"version": __version__, "content": content, "fit": dataclasses.asdict(fit),
               "template": manifest.template_sha256,
               "tokenizer": manifest.tokenizer_sha256}  # fmt: skip
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _shortener(manifest: Manifest, fit: Fit, tokenizer: Tokenizer) -> Shortener:
    """What shortens rows as preparing them did: with the same tokenizer, template and targets."""
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise DataError(f"prepared with another tokenizer (vocabulary hash "
                        f"{manifest.tokenizer_sha256[:12]}) than the one in use "
                        f"({tokenizer.sha256[:12]}); prepare it again with this one")  # fmt: skip
    settings = manifest.settings
    template: ChatTemplate
    if manifest.template == HfChatTemplate.name:
        template = HfChatTemplate(tokenizer)
    else:
        template = find_template(manifest.template, settings.get("template_compat"),
                                 settings.get("thinking"))  # fmt: skip
    if template.fingerprint() != manifest.template_sha256:
        raise DataError(f"--truncation {fit.truncation} needs template {manifest.template} as it "
                        "was when the rows were made, and it has changed since; prepare them "
                        "again")  # fmt: skip
    return Shortener(Renderer(tokenizer, template), fit.truncation, fit.seq_length,
                     settings["train_on"], settings["train_on_inputs"])  # fmt: skip


class _Run:
    """One fitting: the rows that are short enough, and what is left of the others."""

    def __init__(self, source: DatasetFiles, manifest: Manifest, target: DatasetFiles,
                 fit: Fit) -> None:  # fmt: skip
        self._source, self._manifest = source, manifest
        self._target, self._fit = target, fit
        self._tally = Tally()

    def make(self, lengths: np.ndarray, long: np.ndarray,
             tokenizer: Callable[[], Tokenizer]) -> Report:  # fmt: skip
        """Write data set, report and manifest."""
        fit, tally = self._fit, self._tally
        with exclusive_scratch(self._target) as scratch:
            shard = Shard(scratch / "shortened")
            with shard:
                origins = np.array(list(self._shorten(shard, lengths, long, tokenizer)), np.int64)
            whole = np.flatnonzero(lengths <= fit.seq_length)
            # Behind the rows of the data set come those that were made of long ones.
            rows = np.concatenate([whole, len(lengths) + np.arange(len(origins))])
            order = rows[np.argsort(np.concatenate([whole, origins]), kind="stable")]
            if not len(order):
                raise DataError(f"all {len(lengths)} rows are longer than --seq-length "
                                f"{fit.seq_length}; nothing is left to train on")  # fmt: skip
            tally.buckets[KEPT] += len(whole)
            both = np.concatenate([lengths, shard.lengths()])[order]
            tally.written, tally.longest = len(order), int(both.max())
            tally.tokens = int(both.sum(dtype=np.int64))
            shards = (PreparedShard(self._source), shard)
            packing: Packing | None = None
            if fit.pack:
                packing, described, tally.supervised_tokens = pack_rows(
                    self._target, shards, order, scratch, capacity=fit.seq_length,
                    multiple=fit.pad_to_multiple_of, pad_id=self._manifest.pad_id,
                )  # fmt: skip
            else:
                described, tally.supervised_tokens = write_ordered(
                    self._target, shards, order, scratch
                )
            report = Report(str(self._target.prefix), tally, [], True)
            write_json(self._target.report, report.as_json())
            self._write_manifest(described, packing)
        return report

    def _shorten(self, shard: Shard, lengths: np.ndarray, long: np.ndarray,
                 tokenizer: Callable[[], Tokenizer]) -> Iterator[int]:  # fmt: skip
        """Write what is left of every row that is too long; yields the row that each comes from."""
        if self._fit.truncation == "drop":
            self._tally.buckets[OVER_LENGTH] += len(long)
        elif self._fit.truncation == "split":
            yield from self._split(shard, lengths, long)
        elif len(long):
            shortener = _shortener(self._manifest, self._fit, tokenizer())
            yield from self._drop_turns(shard, lengths, long, shortener)

    def _split(self, shard: Shard, lengths: np.ndarray, long: np.ndarray) -> Iterator[int]:
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        with self._source.data("input_ids").open("rb") as file:
            for row in long.tolist():
                file.seek(4 * int(starts[row]))
                ids = np.frombuffer(file.read(4 * int(lengths[row])), "<i4").tolist()
                pieces = cut(ids, self._fit.seq_length)
                self._tally.keep(Made(pieces, tokens=len(ids) - _tokens(pieces)))
                for piece in pieces:
                    shard.add(piece.ids, piece.labels)
                    yield row

    def _drop_turns(self, shard: Shard, lengths: np.ndarray, long: np.ndarray,
                    shortener: Shortener) -> Iterator[int]:  # fmt: skip
        wanted = iter(long.tolist())
        row = next(wanted)
        with self._source.turns.open("rb") as file:
            for number, line in enumerate(file):
                if number != row:
                    continue
                turns = Turns.of_line(line, f"{self._source.turns}:{number + 1}")
                shorter = None if turns is None else shortener.shorten(turns)
                if turns is None or shorter is None:
                    reason = f"{lengths[row]} tokens, more than --seq-length {shortener.limit}"
                    error = RowError("(row)", reason, kind=OVER_LENGTH)
                    self._tally.leave_out(row + 1, error)
                else:
                    left, made = shorter
                    dropped = len(turns.conversation.messages) - len(left.conversation.messages)
                    lost = int(lengths[row]) - len(made.ids)
                    self._tally.keep(Made([made], TRUNCATED, turns=dropped, tokens=lost))
                    shard.add(made.ids, made.labels)
                    yield row
                row = next(wanted, -1)
                if row < 0:
                    return
        raise DataError(f"{self._source.turns}: fewer lines than the data set has rows")

    def _write_manifest(self, described: dict[str, Any], packing: Packing | None) -> None:
        tally, fit, old = self._tally, self._fit, self._manifest
        counts = {name: n for name, n in sorted(tally.buckets.items()) if n}
        dataclasses.replace(
            old,
            rows=tally.written if packing is None else packing.rows,
            tokens=tally.tokens,
            supervised_tokens=tally.supervised_tokens,
            longest=tally.longest,
            seq_length=fit.seq_length,
            packed=packing is not None,
            packing=packing,
            settings={**old.settings, "truncation": fit.truncation},
            counts=counts,
            files=described,
        ).write(self._target.manifest)


def _tokens(rows: list[Rendered]) -> int:
    return sum(len(row.ids) for row in rows)
