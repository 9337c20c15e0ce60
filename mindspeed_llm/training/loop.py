"""Owns the order of a run: iterations, evaluation, checkpoints, records, the end. Knows neither
flags nor how model, data and files were made; `setup` puts a `Job` together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mindspeed_llm.config.run import ControlSettings
from mindspeed_llm.errors import TrainingError
from mindspeed_llm.training.control import Control, Ending
from mindspeed_llm.training.display import Display
from mindspeed_llm.training.feed import Feed
from mindspeed_llm.training.metrics import CURVE, Record, RecordFile, Totals, draw_curve
from mindspeed_llm.training.optimizer import NotFinite, check_finite
from mindspeed_llm.training.step import Replica, evaluate_batch, train_batch

_MOST_SKIPPED = 10  # batches left out in a row before that is no mend any more
_MOST_ROLLBACKS = 3  # to one and the same checkpoint


@dataclasses.dataclass(frozen=True)
class Best:
    """The lowest validation loss so far, and evaluations `since` that did not reach it."""

    loss: float = math.inf
    iteration: int = 0
    since: int = 0

    def after(self, loss: float, iteration: int) -> Best:
        """With one more evaluation; a loss that is not a number is never better."""
        if loss < self.loss:
            return Best(loss, iteration)
        return dataclasses.replace(self, since=self.since + 1)


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands: the last finished iteration, the samples it has consumed (more than
    iterations x batch after a rollback), and its evaluations."""

    iteration: int
    consumed: int
    best: Best = Best()


class Sink(Protocol):
    """Where lines of numbers go."""

    def write(self, line: dict[str, Any]) -> None: ...

    def cut(self, after: int) -> None:
        """Forget the lines of later iterations, which will come again."""


@dataclasses.dataclass
class Job:
    """A run that is ready to go: everything made, nothing done yet.

    `start` is where it stands (`is_saved`: a checkpoint among those of this run), `total` the
    iteration to reach; `save` writes a checkpoint there,
    `restore` goes back to the last one. `speaks` is true on the one rank that shows and records;
    `sinks` are beside the file in `log_dir`. `began` is `time.monotonic()` at the start, `peak` the
    device's TFLOP/s or None, `memory` the bytes held so far.
    """

    replica: Replica
    feed: Feed
    validation: Feed | None
    test: Feed | None
    batch_size: int
    start: Position
    total: int
    is_saved: bool
    log_interval: int
    eval_interval: int
    eval_iters: int
    save_interval: int | None
    save: Callable[[Position], Path] | None
    restore: Callable[[], Position]
    save_best: bool
    control: ControlSettings
    log_dir: Path | None
    speaks: bool
    began: float
    devices: int = 1
    peak: float | None = None
    memory: Callable[[], int] = lambda: 0
    sinks: Sequence[Sink] = ()
    around: Callable[[int], contextlib.AbstractContextManager[Any]] = lambda _: (
        contextlib.nullcontext()
    )


def train(job: Job) -> int:
    """Train from `job.start` to `job.total`, evaluate and save on the way and at the end.

    Returns:
        the exit code: 0 at the end, and where the settings said to leave; 128 + its number after a
        signal.

    Raises:
        TrainingError: see `step.train_batch`; names the iteration and the last checkpoint.
    """
    with contextlib.ExitStack() as stack:
        shown = Display(
            first=job.start.iteration, total=job.total, interval=job.log_interval, shown=job.speaks
        )
        display = stack.enter_context(shown)
        sinks = list(job.sinks)
        records = None
        if job.speaks and job.log_dir is not None:
            records = stack.enter_context(RecordFile(job.log_dir, after=job.start.iteration))
            sinks.append(records)
        control = Control(job.control, began=job.began, device=job.replica.device)
        stack.enter_context(control)
        if job.start.iteration >= job.total:
            display.say(
                f"iteration {job.start.iteration} of {job.total} is reached already, and nothing "
                "is left to train; --train-iters or --epochs say more"
            )
        run = _Run(job, display, sinks, control)
        ending = run.to_the_end()
        if job.test and ending is None:
            run.evaluate(job.test, "test")
        if records is not None and job.log_dir is not None:
            display.say(draw_curve(records.path, job.log_dir / CURVE))
        return 0 if ending is None else ending.code


class _Run:
    """The state of a run while it runs."""

    def __init__(self, job: Job, display: Display, sinks: Sequence[Sink], control: Control) -> None:
        self._job, self._display, self._sinks, self._control = job, display, sinks, control
        self.at = job.start
        self._saved = job.start.iteration  # iteration of the last checkpoint, 0: none
        self._may_go_back = job.is_saved
        self._skipped = 0  # batches left out in a row
        self._rollbacks = 0  # to the last checkpoint

    def to_the_end(self) -> Ending | None:
        """All iterations; None if the run came to its end, by its settings or for lack of
        progress."""
        job = self._job
        while self.at.iteration < job.total:
            if not self._iteration():
                continue
            stalled = self._evaluate_if_due()
            last = stalled or self.at.iteration == job.total
            if last or (job.save_interval and self.at.iteration % job.save_interval == 0):
                self._save()
            ending = self._control.after(self.at.iteration)
            if ending is not None and not last:
                self._leave(ending)
                return ending
            if stalled:
                break
        return None

    def _iteration(self) -> bool:
        """One optimizer step; False if the run went back instead."""
        job = self._job
        number = self.at.iteration + 1
        consumed = self.at.consumed + job.batch_size
        try:
            with job.around(number):
                record = run_iteration(job, number, self.at.consumed)
        except NotFinite as problem:
            return self._not_finite(number, problem)
        except TrainingError as error:
            raise TrainingError(f"iteration {number}: {error}") from None
        self._skipped = 0
        self.at = dataclasses.replace(self.at, iteration=number, consumed=consumed)
        self._display.iteration(record)
        self._note(dataclasses.asdict(record))
        return True

    def _not_finite(self, number: int, problem: NotFinite) -> bool:
        policy = self._job.control.on_non_finite
        if policy == "rollback" and self._may_go_back and self._rollbacks < _MOST_ROLLBACKS:
            self._roll_back(number, problem)
            return False
        if policy == "skip" and self._skipped < _MOST_SKIPPED:
            self._skipped += 1
            self._job.replica.schedule.step(self._job.batch_size)
            self.at = dataclasses.replace(
                self.at, iteration=number, consumed=self.at.consumed + self._job.batch_size
            )
            self._display.say(f"iteration {number}: {problem}; this batch is left out")
            self._note({"iteration": number, "event": "skipped", "why": str(problem)})
            return True
        often = {
            "skip": f" in {_MOST_SKIPPED + 1} batches in a row",
            "rollback": ", and --save has nothing yet to go back to",
            "rolled back": f" again after {self._rollbacks} rollbacks",
        }.get("rolled back" if self._rollbacks else policy, "")
        raise TrainingError(
            f"iteration {number}: {problem}{often}. Stopped before the step, {self._kept()}. "
            "If the numbers diverged: lower --lr, warm up longer, or set --clip-grad 1.0"
        )

    def _roll_back(self, number: int, problem: NotFinite) -> None:
        """Back to the last checkpoint; what was read since, the bad batch too, is left out."""
        consumed = self.at.consumed + (number - self.at.iteration) * self._job.batch_size
        self._rollbacks += 1
        self.at = dataclasses.replace(self._job.restore(), consumed=consumed)
        for sink in self._sinks:
            sink.cut(self.at.iteration)
        self._display.say(
            f"iteration {number}: {problem}; back to the checkpoint of iteration "
            f"{self.at.iteration}, and on with the data behind this batch"
        )
        self._note({"iteration": self.at.iteration, "event": "rollback", "from": number,
                    "why": str(problem)})  # fmt: skip

    def _evaluate_if_due(self) -> bool:
        """Whether the run ends, because evaluations no longer get better."""
        job, number = self._job, self.at.iteration
        if not job.validation or (number != job.total and number % job.eval_interval):
            return False
        loss = self.evaluate(job.validation, "validation")
        self.at = dataclasses.replace(self.at, best=self.at.best.after(loss, number))
        if job.save_best and self.at.best.iteration == number:
            self._save()
        patience = job.control.early_stop_patience
        if patience is None or self.at.best.since < patience:
            return False
        self._display.say(
            f"iteration {number}: no lower validation loss in {patience} evaluations; the lowest "
            f"was {self.at.best.loss:.4f} at iteration {self.at.best.iteration}. The run ends here"
        )
        return True

    def evaluate(self, feed: Feed, kind: str) -> float:
        """Mean loss over the first `eval_iters` batches of `feed`, the same rows every time."""
        job = self._job
        parts = [
            evaluate_batch(job.replica, feed.micro_batches(index * job.batch_size, once=True))
            for index in range(min(job.eval_iters, feed.batches))
        ]
        whole = Totals.sum_of(parts)
        if whole.supervised == 0:
            raise TrainingError(
                f"the {kind} rows hold no supervised token; give --split or --eval-iters more of "
                "them"
            )
        turns = whole.turn_losses()
        self._display.say(
            f"iteration {self.at.iteration}: {kind} loss {whole.loss:.4f} "
            f"(perplexity {math.exp(min(whole.loss, 700)):.3f}) over {whole.supervised} tokens"
        )
        if len(turns) > 1:
            self._display.say(
                f"    by turn: {', '.join(f'{n}: {loss:.4f}' for n, (loss, _) in turns.items())}"
            )
        self._note(
            {
                "iteration": self.at.iteration,
                f"{kind}_loss": whole.loss,
                f"{kind}_supervised_tokens": whole.supervised,
                f"{kind}_turn_losses": {str(turn): loss for turn, (loss, _) in turns.items()},
                f"{kind}_turn_tokens": {str(turn): count for turn, (_, count) in turns.items()},
            }
        )
        return whole.loss

    def _save(self) -> None:
        """Write a checkpoint, unless there is one of this iteration.

        Raises:
            TrainingError: a weight is not finite; nothing was written.
        """
        job = self._job
        if job.save is None or self._saved == self.at.iteration:
            return
        try:
            check_finite(job.replica.model, job.replica.optimizer)
        except NotFinite as problem:
            raise TrainingError(
                f"iteration {self.at.iteration}: {problem}, so no checkpoint of it was written; "
                f"{self._kept()}"
            ) from None
        self._display.say(f"saved {job.save(self.at)}")
        self._saved, self._rollbacks, self._may_go_back = self.at.iteration, 0, True

    def _kept(self) -> str:
        if not self._saved:
            return "no checkpoint was written"
        return f"the last checkpoint is iteration {self._saved}"

    def _leave(self, ending: Ending) -> None:
        self._save()
        kept = "" if self._job.save else ", and nothing was kept: there is no --save"
        self._display.say(f"iteration {self.at.iteration}: {ending.why}; the run leaves{kept}")
        if ending.code:
            self._control.deaf()

    def _note(self, line: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(line)


def run_iteration(job: Job, iteration: int, consumed: int) -> Record:
    """One optimizer step on the batch behind `consumed` samples."""
    begin = time.perf_counter()
    rate = job.replica.optimizer.param_groups[0]["lr"]
    totals, norm = train_batch(job.replica, job.feed.micro_batches(consumed))
    job.replica.schedule.step(job.batch_size)
    return Record.of(
        totals,
        iteration=iteration,
        consumed=consumed + job.batch_size,
        lr=rate,
        norm=norm,
        seconds=time.perf_counter() - begin,
        devices=job.devices,
        peak=job.peak,
        memory=job.memory(),
    )
