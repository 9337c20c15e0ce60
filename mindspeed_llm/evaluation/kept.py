"""Owns the answers an evaluation has got so far, in a file, so that an interrupted one goes on
where it was. It knows an engine; what is asked, and why, it does not know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.journal import Journal

_TOGETHER = 64  # rows that are scored between two writes

Progress = Callable[[int], None]
Row = tuple[Sequence[int], Sequence[int]]


class _Engine(Protocol):
    """See `inference.engine.Engine`."""

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> Reply: ...

    def batches(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int
    ) -> Iterator[dict[int, Reply]]: ...

    def scores(
        self, rows: Sequence[Row], *, progress: Progress | None
    ) -> list[list[tuple[float, int]]]: ...


class Kept:
    """An engine that is asked nothing twice.

    An answer's key is a hash of the question and of `model`; so it does not matter whether the
    questions have changed since, or their order.

    Args:
        engine: makes what is not there.
        path: a line of JSON for each answer, written as they come; it may hold other models' too.
        model: tells weights and settings that decide an answer from others.

    Raises:
        DataError: the file cannot be read or written.
    """

    def __init__(self, engine: _Engine, path: Path, model: str) -> None:
        self.engine, self.model = engine, model
        self._journal = Journal(path)

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> Reply:
        """As the engine's, without its counts."""
        (reply,) = self.generate_batch([prompt], max_new_tokens=max_new_tokens, batch_size=1)
        return reply

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int,
        progress: Progress | None = None,
    ) -> list[Reply]:  # fmt: skip
        """As the engine's, without its counts."""
        keys = [self._key("reply", max_new_tokens, list(prompt)) for prompt in prompts]
        due = self._due(keys, progress)
        asked = [prompts[place] for place in due]
        for found in self.engine.batches(
            asked, max_new_tokens=max_new_tokens, batch_size=batch_size
        ):
            self._keep({keys[due[at]]: [r.ids, r.stop] for at, r in found.items()}, progress)
        rows = zip(prompts, (self._journal.rows[key] for key in keys), strict=True)
        return [Reply(prompt_tokens=len(p), ids=list(ids), stop=stop) for p, (ids, stop) in rows]

    def scores(
        self, rows: Sequence[Row], *, progress: Progress | None = None
    ) -> list[list[tuple[float, int]]]:
        """As the engine's."""
        keys = [self._key("scores", list(ids), list(labels)) for ids, labels in rows]
        due = sorted(self._due(keys, progress), key=lambda place: -len(rows[place][0]))
        for first in range(0, len(due), _TOGETHER):
            places = due[first : first + _TOGETHER]
            found = self.engine.scores([rows[place] for place in places], progress=None)
            self._keep(dict(zip((keys[place] for place in places), found, strict=True)), progress)
        return [
            [(float(loss), int(best)) for loss, best in self._journal.rows[key]] for key in keys
        ]

    def _key(self, *question: Any) -> str:
        return hashlib.sha256(json.dumps([self.model, question]).encode()).hexdigest()[:32]

    def _due(self, keys: Sequence[str], progress: Progress | None) -> list[int]:
        """Places whose answers are not there; of equal questions, one."""
        due = {key: place for place, key in enumerate(keys) if key not in self._journal.rows}
        if progress is not None:
            progress(len(keys) - len(due))
        return list(due.values())

    def _keep(self, rows: dict[str, Any], progress: Progress | None) -> None:
        self._journal.add(rows)
        if progress is not None:
            progress(len(rows))
