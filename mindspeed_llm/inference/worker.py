"""Owns the thread in which the engine runs while a server answers: jobs come in from other threads,
what is said goes out through each job's function. It knows no protocol.

Only this thread touches the engine.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Sequence

from mindspeed_llm.errors import UserError
from mindspeed_llm.inference.engine import Engine
from mindspeed_llm.inference.reply import Reply, Ticket
from mindspeed_llm.inference.sampling import Sampling
from mindspeed_llm.inference.stream import TextStream


@dataclasses.dataclass(frozen=True)
class Said:
    """A part of a reply.

    Attributes:
        text: new text, possibly empty.
        upto: ids of the reply whose text is out by now.
        is_last: whether the reply is over.
        failure: why it could not be made, where that is so.
    """

    text: str = ""
    upto: int = 0
    is_last: bool = False
    failure: Exception | None = None


class Job:
    """A reply that is wanted.

    Args:
        prompt: ids.
        sampling: how tokens are drawn.
        limit: most tokens.
        stream: turns ids into text.
        say: called in the engine's thread with each part, the last one with `is_last`.
        echo: log-probabilities of the prompt too.
    """

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, limit: int, stream: TextStream,
        say: Callable[[Said], None], *, echo: bool = False,
    ) -> None:  # fmt: skip
        self.prompt, self.sampling, self.limit, self.echo = prompt, sampling, limit, echo
        self.stream, self.say = stream, say
        self.ticket: Ticket | None = None
        self.is_cancelled = self.is_over = False

    @property
    def reply(self) -> Reply:
        """What was made so far."""
        return Reply(prompt_tokens=len(self.prompt)) if self.ticket is None else self.ticket.reply


class Full(Exception):
    """More replies are waiting than may."""


class Stopped(Exception):
    """The engine does not run any more."""


class Worker:
    """Runs an engine.

    Args:
        engine: of rank 0; used by this worker's thread alone from now on.
        most: replies that may be running or waiting.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self.engine, self.most = engine, most
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._count = 0
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def count(self) -> int:
        """Replies that are running or waiting."""
        return self._count

    @property
    def is_alive(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self._is_stopping

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all or none; from any thread.

        Raises:
            Full: too many are waiting.
            Stopped: the worker has ended.
        """
        with self._lock:
            if not self.is_alive:
                raise Stopped
            if self._count + len(jobs) > self.most:
                raise Full
            self._count += len(jobs)
        for job in jobs:
            self._inbox.put(job)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """What is left of these jobs is not wanted; from any thread."""
        for job in jobs:
            job.is_cancelled = True
            self._inbox.put(job)

    def ask_to_stop(self) -> None:
        """End the thread after the step it is in; replies that are not over fail. From anywhere,
        a signal's handler too."""
        self._is_stopping = True
        self._inbox.put(None)

    def stop(self) -> None:
        """`ask_to_stop`, and wait for it."""
        self.ask_to_stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._take()
                if self.engine.is_busy and not self._is_stopping:
                    self._step()
        except Exception as err:
            self.failure = err
            raise
        finally:
            failure = self.failure or Stopped("the server is shutting down")
            self._is_stopping = True
            waiting = list(self._jobs.values())
            while not self._inbox.empty():
                job = self._inbox.get()
                if job is not None:
                    waiting.append(job)
            for job in waiting:
                self._over(job, Said(is_last=True, failure=failure))
            if self.failure is not None:
                self.on_failure()

    def _take(self) -> None:
        """Jobs that came in; waits for one where nothing runs."""
        is_idle = not self.engine.is_busy
        while is_idle or not self._inbox.empty():
            is_idle = False
            job = self._inbox.get()
            if job is None:
                return
            if job.is_over:
                continue
            if job.is_cancelled:
                if job.ticket is not None:
                    self.engine.cancel(job.ticket)
                self._over(job, Said(is_last=True, failure=Stopped("cancelled")))
            else:
                self._begin(job)

    def _begin(self, job: Job) -> None:
        try:
            job.ticket = self.engine.submit(
                job.prompt, sampling=job.sampling, max_new_tokens=job.limit, echo=job.echo
            )
        except UserError as err:
            self._over(job, Said(is_last=True, failure=err))
            return
        self._jobs[job.ticket.number] = job

    def _step(self) -> None:
        for ticket in self.engine.advance():
            job = self._jobs.get(ticket.number)
            if job is None:
                continue  # cancelled since
            reply, stream, text = ticket.reply, job.stream, ""
            if reply.stop != "stop":
                text = stream.push(reply.ids[-1])
            if stream.stopped:
                if reply.stop is None:
                    self.engine.cancel(ticket)
                reply.stop = "stop_string"
            if reply.stop is not None:
                text += stream.finish()
                self._over(job, Said(text, stream.kept(), is_last=True))
            else:
                job.say(Said(text, stream.out()))

    def _over(self, job: Job, said: Said) -> None:
        if job.is_over:
            return
        job.is_over = True
        if job.ticket is not None:
            self._jobs.pop(job.ticket.number, None)
        with self._lock:
            self._count -= 1
        job.say(said)
