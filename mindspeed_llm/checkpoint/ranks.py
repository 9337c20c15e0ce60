"""Owns what the processes of a job tell each other while saving and loading: JSON texts only.

Works without a process group too (one process). It knows nothing of files or models.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from mindspeed_llm.errors import CheckpointError


def rank() -> int:
    """Rank in the default process group; 0 without one."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Processes in the default process group; 1 without one."""
    return dist.get_world_size() if _grouped() else 1


def gather(value: Any) -> list[Any]:
    """JSON-able `value` of every rank, in rank order, on every rank."""
    if not _grouped():
        return [value]
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, json.dumps(value))
    return [json.loads(text) for text in texts]


def from_first(value: Any) -> Any:
    """Rank 0's JSON-able `value`, on every rank."""
    if not _grouped():
        return value
    box = [json.dumps(value) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return json.loads(box[0])


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """A step that fails on all ranks when it fails on one, so that nobody is left waiting.

    Every rank must enter it. Errors that are not the user's to mend pass through untouched.

    Raises:
        CheckpointError: with the first rank's message, and the rank where there are several.
    """
    problem: str | None = None
    cause: Exception | None = None
    try:
        yield
    except CheckpointError as err:
        problem, cause = str(err), err
    except OSError as err:
        problem, cause = f"{what}: {err}", err
    problems = {number: text for number, text in enumerate(gather(problem)) if text is not None}
    if not problems:
        return
    first = min(problems)
    same = all(text == problems[first] for text in problems.values())
    prefix = "" if world_size() == 1 or (same and len(problems) > 1) else f"rank {first}: "
    raise CheckpointError(prefix + problems[first]) from cause


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
