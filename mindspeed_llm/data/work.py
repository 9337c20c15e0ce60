"""Owns turning chunks of input into shards, in this process or in several; only counts come back.

It knows neither what a row holds nor what files become of the shards.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.readers import Chunk, ChunkReader
from mindspeed_llm.data.report import Made, Tally
from mindspeed_llm.data.sources import Source
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.data.writer import Shard
from mindspeed_llm.errors import DataError

_BATCH = 256
_COLLECTED_AFTER = 200_000  # objects; Python's own number is 700
_NAMED_COLUMNS = 100


class RowMaker(Protocol):
    """What makes token rows of input rows; a copy of it travels to each process."""

    source: Source

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the rows."""

    @property
    def template(self) -> str:
        """Name of what gives rows their form."""

    def fingerprint(self) -> str:
        """Hash that changes when the same rows can become other ids."""

    def take(self, row: Mapping[str, Any]) -> Any:
        """What `make` needs of a row; raises RowError where it cannot be used."""

    def make(self, items: Sequence[Any]) -> list[Made | RowError]:
        """Rows of ids and labels, or why there is none, for each of what `take` gave."""


@dataclass
class Work:
    """What a process needs to turn a chunk into a shard.

    Args:
        strict: stop a chunk at its first unusable row.
    """

    maker: RowMaker
    scratch: Path
    reader: ChunkReader
    strict: bool = False

    def shard(self, number: int) -> Shard:
        """The shard that chunk `number` becomes."""
        return Shard(self.scratch / f"shard-{number:08d}")

    def run(self, number: int, chunk: Chunk) -> Tally:
        """Write the shard of one chunk; its faults are in the order of the rows."""
        tally = Tally(columns=set(chunk.file.columns or ()))
        with self.shard(number) as shard:
            batch: list[tuple[int, Any]] = []
            for position, row in self.reader.read(chunk):
                try:
                    batch.append((position, self._take(row, tally)))
                except RowError as err:
                    tally.leave_out(position, err)
                    if self.strict:
                        break
                if len(batch) == _BATCH:
                    self._write(batch, shard, tally)
                    batch = []
            self._write(batch, shard, tally)
        tally.faults.sort()
        return tally

    def _take(self, row: Any, tally: Tally) -> Any:
        if isinstance(row, RowError):
            raise row
        known = self.maker.source.columns if len(tally.columns) > _NAMED_COLUMNS else row
        tally.columns.update(name for name in known if name in row)
        return self.maker.take(row)

    def _write(self, batch: Sequence[tuple[int, Any]], shard: Shard, tally: Tally) -> None:
        made = self.maker.make([item for _, item in batch]) if batch else []
        for (position, _), row in zip(batch, made, strict=True):
            if isinstance(row, RowError):
                tally.leave_out(position, row)
                continue
            tally.keep(row)
            for index, piece in enumerate(row.pieces):
                line = row.made_of[index].line() if row.made_of else b""
                shard.add(piece.ids, piece.labels, row.outcome if index == 0 else None, line)


def tallies(work: Work, chunks: Sequence[Chunk], workers: int) -> Iterator[Tally]:
    """Run every chunk; yields their tallies in the order of the chunks.

    Raises:
        DataError: a worker process died.
    """
    workers = min(workers, len(chunks))
    if workers == 1:
        with _fewer_collections():
            yield from (work.run(number, chunk) for number, chunk in enumerate(chunks))
        return
    # Processes are the parallelism; the tokenizers library's threads would only compete with them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A forked process has the tokenizer already; a fresh one would read it again. This one has no
    # thread then that could hold a lock but those of libraries which know of forks.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work,))
    try:
        found = pool.map(_run_in_worker, range(len(chunks)), chunks)
        _ = work.maker.tokenizer.sha256  # takes a second, which this process has while they work
        yield from found
    except BrokenProcessPool as err:
        raise DataError("a worker process died (out of memory, or killed); nothing was written. "
                        "Try fewer --workers") from err  # fmt: skip
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """Search for reference cycles seldom: rows are many objects without any, and looking through
    them takes a fifth of the time."""
    before = gc.get_threshold()
    gc.freeze()  # what is there stays; the tokenizer's tables need no search
    gc.set_threshold(_COLLECTED_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


_work: list[Work] = []  # of a worker process, set once by `_start_worker`


def _start_worker(work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _work.append(work)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(number: int, chunk: Chunk) -> Tally:
    with _fewer_collections():
        return _work[0].run(number, chunk)
