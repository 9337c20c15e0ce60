"""Owns the order of a run: iterations, evaluation, checkpoints, records, the end. Knows neither
flags nor how model, data and files were made; `setup` puts a `Job` together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import TrainingError
from mindspeed_llm.training.display import Display
from mindspeed_llm.training.feed import Feed
from mindspeed_llm.training.metrics import CURVE, Record, RecordFile, Totals, draw_curve
from mindspeed_llm.training.step import Replica, evaluate_batch, train_batch


@dataclasses.dataclass
class Job:
    """A run that is ready to go: everything made, nothing done yet.

    `start` is the last finished iteration (0: none), `total` the one to reach; `save` writes the
    checkpoint of an iteration. `speaks` is true on the one rank that shows and records.
    """

    replica: Replica
    feed: Feed
    validation: Feed | None
    test: Feed | None
    batch_size: int
    start: int
    total: int
    log_interval: int
    eval_interval: int
    eval_iters: int
    save_interval: int | None
    save: Callable[[int], Path] | None
    log_dir: Path | None
    speaks: bool


def train(job: Job) -> None:
    """Train from `job.start` to `job.total`, evaluate and save on the way and at the end.

    Raises:
        TrainingError: see `step.train_batch`; names the iteration and the last checkpoint.
    """
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(
            Display(first=job.start, total=job.total, interval=job.log_interval, shown=job.speaks)
        )
        records = None
        if job.speaks and job.log_dir is not None:
            records = stack.enter_context(RecordFile(job.log_dir, after=job.start))

        def note(line: dict[str, Any]) -> None:
            if records is not None:
                records.write(line)

        saved = job.start
        for iteration in range(job.start + 1, job.total + 1):
            record = run_iteration(job, iteration, saved)
            display.iteration(record)
            note(dataclasses.asdict(record))
            last = iteration == job.total
            if job.validation and (last or iteration % job.eval_interval == 0):
                _evaluate(job, job.validation, "validation", iteration, display, note)
            if job.save and (last or (job.save_interval and iteration % job.save_interval == 0)):
                display.say(f"saved {job.save(iteration)}")
                saved = iteration
        if job.test:
            _evaluate(job, job.test, "test", job.total, display, note)
        if records is not None and job.log_dir is not None:
            display.say(draw_curve(records.path, job.log_dir / CURVE))


def run_iteration(job: Job, iteration: int, saved: int) -> Record:
    """One optimizer step; `saved`, the iteration of the last checkpoint or 0, is for messages."""
    begin = time.perf_counter()
    consumed = (iteration - 1) * job.batch_size
    schedule = job.replica.schedule
    rate = job.replica.optimizer.param_groups[0]["lr"]
    try:
        totals, norm = train_batch(job.replica, job.feed.micro_batches(consumed))
    except TrainingError as error:
        kept = f"the last checkpoint is iteration {saved}" if saved else "no checkpoint was written"
        raise TrainingError(
            f"iteration {iteration}: {error}. Stopped before the step, {kept}. If the numbers "
            "diverged: lower --lr, warm up longer, or set --clip-grad 1.0"
        ) from None
    schedule.step(job.batch_size)
    return Record.of(
        totals,
        iteration=iteration,
        consumed=consumed + job.batch_size,
        lr=rate,
        norm=norm,
        seconds=time.perf_counter() - begin,
    )


def _evaluate(
    job: Job,
    feed: Feed,
    kind: str,
    iteration: int,
    display: Display,
    note: Callable[[dict[str, Any]], None],
) -> None:
    """Mean loss over the first `eval_iters` batches of `feed`, the same rows every time."""
    batches = min(job.eval_iters, feed.batches)
    parts = []
    for index in range(batches):
        micro_batches = feed.micro_batches(index * job.batch_size, once=True)
        parts.append(evaluate_batch(job.replica, micro_batches))
    whole = Totals(
        loss_sum=math.fsum(part.loss_sum for part in parts),
        supervised=sum(part.supervised for part in parts),
        real_tokens=sum(part.real_tokens for part in parts),
        padded_tokens=sum(part.padded_tokens for part in parts),
    )
    if whole.supervised == 0:
        raise TrainingError(
            f"the {kind} rows hold no supervised token; give --split or --eval-iters more of them"
        )
    display.say(
        f"iteration {iteration}: {kind} loss {whole.loss:.4f} "
        f"(perplexity {math.exp(min(whole.loss, 700)):.3f}) over {whole.supervised} tokens"
    )
    note(
        {
            "iteration": iteration,
            f"{kind}_loss": whole.loss,
            f"{kind}_supervised_tokens": whole.supervised,
        }
    )
