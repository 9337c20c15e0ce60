"""Owns preparing a data set: input files -> rows of ids and labels -> six files, manifest, report.

Processes render chunks of the input and write shards of their own; only counts travel between
them. It knows no flag's spelling beyond messages and prints nothing.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.chat_template import ChatTemplate
from mindspeed_llm.data.hf_template import HfChatTemplate
from mindspeed_llm.data.inputs import InputFile, find_inputs
from mindspeed_llm.data.manifest import DatasetFiles, Manifest, write_json
from mindspeed_llm.data.messages import Conversation, RowError
from mindspeed_llm.data.packing import Packing, best_fit_decreasing
from mindspeed_llm.data.readers import Chunk, ChunkReader, line_numbers, split_chunks
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.report import LISTED, OVER_LENGTH, BadRow, Report, Tally, collect
from mindspeed_llm.data.sources import Source, make_source
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.data.truncation import shorten
from mindspeed_llm.data.verify import verify_template
from mindspeed_llm.data.writer import (
    Shard,
    exclusive_scratch,
    remove_finished,
    row_lengths,
    write_packed,
    write_six,
)
from mindspeed_llm.errors import DataError
from mindspeed_llm.logging import get_logger

_LOG = get_logger(__name__)
_BATCH = 256
_VERIFIED_ROWS = 64
_TOLERATED = 0.05
_NAMED_COLUMNS = 100


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` bytes of input, `rows` and `tokens` so far."""

    done: int
    total: int
    rows: int
    tokens: int
    seconds: float

    @property
    def eta(self) -> float:
        """Seconds left at this rate."""
        return self.seconds * (self.total - self.done) / max(1, self.done)


@dataclass
class _Work:
    """What a process needs to turn a chunk into a shard."""

    renderer: Renderer
    source: Source
    scratch: Path
    seq_length: int | None
    truncation: str
    reader: ChunkReader

    def run(self, number: int, chunk: Chunk) -> Tally:
        tally = Tally(columns=set(chunk.file.columns or ()))
        with Shard(self.scratch / f"shard-{number:08d}") as shard:
            batch: list[tuple[int, Conversation]] = []
            for position, row in self.reader.read(chunk):
                try:
                    batch.append((position, self._conversation(row, tally)))
                except RowError as err:
                    tally.leave_out(position, err)
                if len(batch) == _BATCH:
                    self._write(batch, shard, tally)
                    batch = []
            self._write(batch, shard, tally)
        return tally

    def _conversation(self, row: Any, tally: Tally) -> Conversation:
        if isinstance(row, RowError):
            raise row
        known = self.source.columns if len(tally.columns) > _NAMED_COLUMNS else row
        tally.columns.update(name for name in known if name in row)
        conversation = self.source.read(row)
        conversation.check_trainable()
        return conversation

    def _write(self, batch: Sequence[tuple[int, Conversation]], shard: Shard,
               tally: Tally) -> None:  # fmt: skip
        rows = self.renderer.render_many([conversation for _, conversation in batch])
        for (position, conversation), row in zip(batch, rows, strict=True):
            turns = cut = 0
            if self.seq_length is not None and len(row.ids) > self.seq_length:
                whole = len(row.ids)
                shorter = shorten(conversation, self.truncation, self.seq_length, self._length)
                if shorter is None:
                    reason = f"{whole} tokens, more than --seq-length {self.seq_length}"
                    tally.leave_out(position, RowError("(row)", reason, kind=OVER_LENGTH))
                    continue
                row = self.renderer.render(shorter)
                turns = len(conversation.messages) - len(shorter.messages)
                cut = whole - len(row.ids)
            shard.add(row.ids, row.labels)
            supervised = len(row.labels) - row.labels.count(IGNORE)
            tally.keep(len(row.ids), supervised, turns=turns, cut=cut)

    def _length(self, conversation: Conversation) -> int:
        return len(self.renderer.render(conversation).ids)


_work: list[_Work] = []  # of a worker process, set once by `_start_worker`


def _start_worker(work: _Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _work.append(work)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(number: int, chunk: Chunk) -> Tally:
    return _work[0].run(number, chunk)


def make_renderer(tokenizer: Tokenizer, config: PreprocessConfig) -> Renderer:
    """Renderer for `--prompt-type` or `--hf-chat-template`."""
    template: ChatTemplate
    if config.uses_hf_template or config.prompt_type is None:
        template = HfChatTemplate(tokenizer)
    else:
        template = find_template(config.prompt_type, config.template_compat, config.thinking)
    return Renderer(tokenizer, template)


def prepare(config: PreprocessConfig,
            progress: Callable[[Progress], None] | None = None) -> Report:  # fmt: skip
    """Prepare the data set of `config`; an older one of the same prefix is replaced.

    Args:
        config: checked settings.
        progress: called after every chunk.

    Returns:
        What became of every row. It is also written beside the data set.

    Raises:
        UserError: wrong settings, input or template; too many unusable rows; nothing to write. No
            data set is left then, finished or half-finished, once rows have begun to be written.
    """
    source = make_source(config.handler_name, config.map_keys)
    inputs = find_inputs(config.input)
    for file in inputs:
        if file.columns is not None:
            _check_columns(file, source, file.columns)
    tokenizer = load_tokenizer(config.tokenizer_name_or_path)
    renderer = make_renderer(tokenizer, config)
    chunks = [chunk for file in inputs for chunk in split_chunks(file)]
    if not chunks:
        raise DataError(f"--input {' '.join(config.input)}: no rows")
    if config.verify_template:
        _verify(renderer, source, chunks)
    files = DatasetFiles(config.output_prefix)
    with exclusive_scratch(files) as scratch:
        remove_finished(files)
        work = _Work(renderer, source, scratch, config.seq_length, config.truncation,
                     ChunkReader(source.columns))  # fmt: skip
        tallies = _run_all(work, chunks, config.workers, progress)
        return _finish(config, files, inputs, chunks, tallies, work)


def _check_columns(file: InputFile, source: Source, present: frozenset[str]) -> None:
    missing = [c for c in source.required if c not in present]
    if missing:
        raise DataError(f"--input {file.path}: no column {', '.join(map(repr, missing))} in the "
                        f"whole file; its columns are {', '.join(sorted(present)) or '(none)'}. "
                        "Name the right ones with --map-keys")  # fmt: skip
    hint = source.unread_hint(present)
    if hint:
        _LOG.warning("%s: %s", file.path, hint)


def _verify(renderer: Renderer, source: Source, chunks: Sequence[Chunk]) -> None:
    sample: list[Conversation] = []
    for _, row in ChunkReader(source.columns).read(chunks[0]):
        if len(sample) == _VERIFIED_ROWS:
            break
        if not isinstance(row, RowError):
            try:
                conversation = source.read(row)
                conversation.check_trainable()
                sample.append(conversation)
            except RowError:
                continue  # counted and reported when its chunk is rendered
    compared = verify_template(renderer, sample)
    if compared is None:
        _LOG.info("the tokenizer has no chat template to compare template %s with",
                  renderer.template.name)  # fmt: skip
    else:
        _LOG.info("template %s agrees with the tokenizer's own chat template "
                  "(%d conversations compared)", renderer.template.name, compared)  # fmt: skip


def _run_all(work: _Work, chunks: Sequence[Chunk], workers: int,
             progress: Callable[[Progress], None] | None) -> list[Tally]:  # fmt: skip
    total = sum(chunk.weight for chunk in chunks)
    done = rows = tokens = listed = 0
    tallies: list[Tally] = []
    start = time.monotonic()
    for chunk, tally in zip(chunks, _tallies(work, chunks, workers), strict=True):
        # Only as many faults are held as a report lists; their counts are complete.
        listed += len(tally.faults)
        if listed - len(tally.faults) >= LISTED:
            tally.faults = []
        tallies.append(tally)
        done, rows, tokens = done + chunk.weight, rows + tally.rows, tokens + tally.tokens
        if progress is not None:
            progress(Progress(done, total, rows, tokens, time.monotonic() - start))
    return tallies


def _tallies(work: _Work, chunks: Sequence[Chunk], workers: int) -> Iterator[Tally]:
    workers = min(workers, len(chunks))
    if workers == 1:
        yield from (work.run(number, chunk) for number, chunk in enumerate(chunks))
        return
    # Processes are the parallelism; the tokenizers library's threads would only compete with them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work,))
    try:
        yield from pool.map(_run_in_worker, range(len(chunks)), chunks)
    except BrokenProcessPool as err:
        raise DataError("a worker process died (out of memory, or killed); nothing was written. "
                        "Try fewer --workers") from err  # fmt: skip
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(config: PreprocessConfig, files: DatasetFiles, inputs: Sequence[InputFile],
            chunks: Sequence[Chunk], tallies: Sequence[Tally], work: _Work) -> Report:  # fmt: skip
    total = Tally()
    seen: dict[InputFile, set[str]] = {}
    for chunk, tally in zip(chunks, tallies, strict=True):
        total.add(tally)
        seen.setdefault(chunk.file, set()).update(tally.columns)
    for file, columns in seen.items():
        if file.columns is None and columns:
            _check_columns(file, work.source, frozenset(columns))
    listed = collect(_bad_rows(chunks, tallies))
    refusal = _refusal(config, total)
    report = Report(str(files.prefix), total, listed, finished=refusal is None)
    if refusal is None:
        shards = [Shard(work.scratch / f"shard-{n:08d}") for n in range(len(chunks))]
        if config.pack:
            packing, described = _pack(config, files, shards, work, total)
        else:
            packing, described = None, write_six(files, shards, work.scratch)
    write_json(files.report, report.as_json())
    if refusal is not None:
        raise DataError("\n".join([refusal, *report.lines(), f"all of them: {files.report}"]))
    _manifest(config, inputs, total, work.renderer, described, packing).write(files.manifest)
    return report


def _pack(config: PreprocessConfig, files: DatasetFiles, shards: Sequence[Shard], work: _Work,
          total: Tally) -> tuple[Packing, dict[str, Any]]:  # fmt: skip
    """Write packed rows; what is supervised is counted again, since no first token is."""
    assert config.seq_length is not None
    lengths = row_lengths(shards)
    packs = best_fit_decreasing(lengths, config.seq_length, config.pad_to_multiple_of)
    packing = Packing(capacity=config.seq_length, multiple=config.pad_to_multiple_of,
                      segments=len(lengths), rows=len(packs),
                      efficiency=total.tokens / (len(packs) * config.seq_length))  # fmt: skip
    pad_id = work.renderer.tokenizer.pad_id
    described, total.supervised_tokens = write_packed(files, shards, packs, packing, pad_id,
                                                      work.scratch)  # fmt: skip
    return packing, described


def _bad_rows(chunks: Sequence[Chunk], tallies: Sequence[Tally]) -> Iterator[BadRow]:
    for file in dict.fromkeys(chunk.file for chunk in chunks):
        faults = [fault for chunk, tally in zip(chunks, tallies, strict=True)
                  if chunk.file == file for fault in tally.faults]  # fmt: skip
        faults = collect(faults)  # line numbers are counted only for those that will be listed
        lines = line_numbers(file, [position for position, *_ in faults]) if faults else {}
        for position, name, reason, kind in faults:
            yield BadRow(str(file.path), lines[position], name, reason, kind)


def _refusal(config: PreprocessConfig, total: Tally) -> str | None:
    if not total.rows:
        return f"--input {' '.join(config.input)}: no rows"
    share = f"{total.bad} of {total.rows} rows cannot be used"
    if total.bad and config.on_bad_row == "error":
        return (f"{share}; nothing was written. Mend them, or leave them out with "
                "--on-bad-row skip")  # fmt: skip
    if config.on_bad_row == "limit" and total.bad > _TOLERATED * total.rows:
        return (f"{share}, more than {_TOLERATED:.0%}, so columns or format are probably not what "
                "was meant; nothing was written. If they are: --on-bad-row skip")  # fmt: skip
    if config.truncation == "error" and total.buckets[OVER_LENGTH]:
        return (f"{total.buckets[OVER_LENGTH]} of {total.rows} rows have more tokens than "
                f"--seq-length {config.seq_length} (--truncation error); nothing was "
                "written")  # fmt: skip
    if not total.kept:
        return "no row is left to train on; nothing was written"
    return None


def _manifest(config: PreprocessConfig, inputs: Sequence[InputFile], total: Tally,
              renderer: Renderer, described: dict[str, Any],
              packing: Packing | None) -> Manifest:  # fmt: skip
    tokenizer = renderer.tokenizer
    settings = {"handler_name": config.handler_name, "map_keys": config.map_keys,
                "on_bad_row": config.on_bad_row, "truncation": config.truncation}  # fmt: skip
    return Manifest(
        rows=total.kept if packing is None else packing.rows,
        tokens=total.tokens,
        supervised_tokens=total.supervised_tokens,
        longest=total.longest,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        template=renderer.template.name,
        template_sha256=renderer.template.fingerprint(),
        seq_length=config.seq_length,
        packed=packing is not None,
        packing=packing,
        seed=config.seed,
        settings=settings,
        counts=dict(sorted(total.buckets.items())),
        inputs=[{"name": f.path.name, "bytes": f.path.stat().st_size} for f in inputs],
        files=described,
        versions={n: importlib.metadata.version(n) for n in ("tokenizers", "transformers")},
    )
