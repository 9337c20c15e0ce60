"""Owns the `preprocess` command line and what it shows; knows nothing of how data is prepared."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

from mindspeed_llm.cli.inspect_data import show_rows, terminal
from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.config.flags import parse
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.prepare import Progress, prepare
from mindspeed_llm.data.render import Rendered
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.data.view import view_row

_REFUSED = {
    "--tokenizer-not-use-fast": "only fast tokenizers are used; they give the same ids",
    "--enable-thinking": "say --thinking keep, strip-history or expand",
    "--streaming": "input is always read in a stream; leave the flag out",
    "--overwrite-cache": "there is no cache; a new run replaces the older files",
    "--cache-dir": "there is no cache; temporaries lie beside the output",
}


def main(argv: Sequence[str]) -> int:
    """Prepare a data set; returns the exit code."""
    (config,) = parse(argv, PreprocessConfig, prog="preprocess_data.py", refused=_REFUSED,
                      description="Conversations -> token ids and labels.")  # fmt: skip
    start = time.monotonic()
    with _shown(config.log_interval) as progress:
        report = prepare(config, progress, _show_samples)
    for line in report.lines():
        print(line)
    files = DatasetFiles(config.output_prefix)
    packing = Manifest.read(files).packing
    if packing is not None:
        print(packing)
    print(f"wrote {files.manifest} and its six files in {time.monotonic() - start:.1f} s; "
          f"for training: --data-path {config.output_prefix}")  # fmt: skip
    return 0


def _show_samples(rows: Sequence[Rendered], tokenizer: Tokenizer) -> None:
    views = [view_row(number, row.ids, row.labels, tokenizer) for number, row in enumerate(rows)]
    show_rows(terminal(sys.stdout), views)
    sys.stdout.flush()


@contextmanager
def _shown(interval: int) -> Iterator[Callable[[Progress], None]]:
    if not sys.stderr.isatty():
        yield _Lines(interval)
        return
    columns = (rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(),
               rich_progress.TaskProgressColumn(), rich_progress.TimeRemainingColumn())  # fmt: skip
    # Drawn here and not by a thread of its own: worker processes are forked from this one.
    console = Console(stderr=True)
    with rich_progress.Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("preparing")

        def update(at: Progress) -> None:
            bar.update(task, total=at.total, completed=at.done, description=_rates(at),
                       refresh=True)  # fmt: skip

        yield update


class _Lines:
    """A line whenever another `interval` rows are done."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._next = interval

    def __call__(self, at: Progress) -> None:
        if at.rows >= self._next:
            self._next = at.rows - at.rows % self._interval + self._interval
            print(f"{_rates(at)}, {at.done / at.total:.0%}, ETA {at.eta:.0f} s",
                  file=sys.stderr, flush=True)  # fmt: skip


def _rates(at: Progress) -> str:
    seconds = max(at.seconds, 1e-9)
    return f"{at.rows:,} rows, {at.rows / seconds:,.0f} rows/s, {at.tokens / seconds:,.0f} tokens/s"
