"""The engine's thread: jobs in, text out, ends and failures told to everyone."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.sampling import GREEDY
from mindspeed_llm.inference.stream import TextStream
from mindspeed_llm.inference.worker import Full, Job, Said, Stopped, Worker


class Heard:
    def __init__(self) -> None:
        self.parts: list[Said] = []
        self.over = threading.Event()

    def __call__(self, said: Said) -> None:
        self.parts.append(said)
        if said.is_last:
            self.over.set()

    def wait(self) -> list[Said]:
        assert self.over.wait(30)
        return self.parts


@pytest.fixture
def engine(letters: type) -> Any:
    return letters()


@pytest.fixture
def worker(engine: Any) -> Worker:
    made = Worker(engine, 3)
    made.start()
    yield made
    engine.may_go_on.set()
    made.stop()


@pytest.fixture
def ask() -> Callable[..., tuple[Job, Heard]]:
    def make(limit: int = 5, stops: tuple[str, ...] = (), prompt: tuple[int, ...] = (1,)) -> tuple:
        heard = Heard()
        stream = TextStream(lambda ids: "".join(map(chr, ids)), stops, raw=True)
        return Job(list(prompt), GREEDY, limit, stream, heard), heard

    return make


def test_text_comes_as_it_is_made(worker: Worker, ask: Callable) -> None:
    job, heard = ask(3)
    worker.submit([job])
    assert [(said.text, said.upto, said.is_last) for said in heard.wait()] == [
        ("a", 1, False), ("b", 2, False), ("c", 3, True)]  # fmt: skip
    assert job.reply.stop == "length" and worker.count == 0


def test_a_stop_string_ends_it_and_what_is_before_it_counts(
    worker: Worker, engine: Any, ask: Callable
) -> None:
    job, heard = ask(20, ("cd",))
    worker.submit([job])
    parts = heard.wait()
    assert "".join(said.text for said in parts) == "ab" and parts[-1].upto == 2
    assert job.reply.stop == "stop_string" and engine.cancelled == [1]


def test_more_than_may_wait_are_refused_all_or_none(
    worker: Worker, engine: Any, ask: Callable
) -> None:
    engine.may_go_on.clear()
    jobs = [ask() for _ in range(4)]
    worker.submit([job for job, _ in jobs[:2]])
    with pytest.raises(Full):
        worker.submit([job for job, _ in jobs[2:]])
    assert worker.count == 2
    engine.may_go_on.set()
    for _, heard in jobs[:2]:
        heard.wait()
    worker.submit([job for job, _ in jobs[2:]])


def test_whoever_hangs_up_is_forgotten(worker: Worker, engine: Any, ask: Callable) -> None:
    engine.may_go_on.clear()
    long, heard = ask(10**6)
    worker.submit([long])
    worker.cancel([long])
    worker.cancel([long])
    engine.may_go_on.set()
    assert isinstance(heard.wait()[-1].failure, Stopped)
    other, later = ask(2)
    worker.submit([other])
    later.wait()
    assert worker.count == 0 and not engine.tickets


def test_a_prompt_that_is_none_fails_alone(worker: Worker, ask: Callable) -> None:
    bad, heard = ask(prompt=())
    good, fine = ask(1)
    worker.submit([bad, good])
    assert isinstance(heard.wait()[-1].failure, ConfigError)
    assert fine.wait()[-1].failure is None


def test_when_it_stops_everyone_is_told(worker: Worker, engine: Any, ask: Callable) -> None:
    engine.may_go_on.clear()
    jobs = [ask(10**6) for _ in range(2)]
    worker.submit([job for job, _ in jobs])
    worker.ask_to_stop()
    engine.may_go_on.set()
    for _, heard in jobs:
        assert isinstance(heard.wait()[-1].failure, Stopped)
    with pytest.raises(Stopped):
        worker.submit([ask()[0]])
    assert not worker.is_alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_fails_everyone(worker: Worker, engine: Any, ask: Callable) -> None:
    told = threading.Event()
    worker.on_failure = told.set
    engine.failure = MemoryError("no room")
    job, heard = ask()
    worker.submit([job])
    assert isinstance(heard.wait()[-1].failure, MemoryError)
    assert told.wait(30) and worker.failure is engine.failure and worker.count == 0
