"""Owns which checkpoints of a run stay: the latest, some at intervals, the best. Knows nothing of
what is in them.

What goes is renamed first, to a name that the next save clears: no half-deleted checkpoint is ever
found.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shutil
import socket
from collections.abc import Collection
from pathlib import Path

from mindspeed_llm.checkpoint import ranks
from mindspeed_llm.checkpoint.directory import replace_text

BEST = "best_checkpointed_iteration.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints stay.

    `last` is how many of the latest (None: all), `interval` keeps multiples of it, `spared` are
    directories that stay whatever happens.
    """

    last: int | None = None
    interval: int | None = None
    spared: Collection[Path] = ()

    def doomed(self, iterations: Collection[int], latest: int, best: int | None) -> list[int]:
        """Which of these saved iterations go. `best` and the `latest`, which the run has written
        last, never do; later ones, which only another run can have left, are not counted."""
        last = 1 if self.last is None and self.interval is not None else self.last
        if last is None:
            return []
        own = sorted(i for i in iterations if i <= latest)
        kept = {*own[-last:], best}
        return [
            i for i in own
            if i not in kept and not (self.interval and i % self.interval == 0)
        ]  # fmt: skip


def retain(root: Path, how: Retention, latest: int, best: int | None) -> None:
    """Remove what need not stay in `root` beside the `latest` iteration, and note the `best` one,
    if it is there (the run may have saved elsewhere before); every rank calls it.

    Raises:
        CheckpointError: on every rank, if something could not be removed or written.
    """
    with ranks.together(f"tidying {root}"):
        if ranks.rank() != 0:
            return
        names = {int(p.name[5:]): p for p in root.glob("iter_*")
                 if re.fullmatch(r"iter_[0-9]{7,}", p.name)}  # fmt: skip
        if best in names:
            replace_text(root / BEST, str(best))
        spared = {path.resolve() for path in how.spared}
        for iteration in how.doomed(names, latest, best):
            path = names[iteration]
            if path.resolve() in spared:
                continue
            mark = f"tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
            aside = path.with_name(f"{path.name}.{mark}")
            os.replace(path, aside)
            shutil.rmtree(aside)
