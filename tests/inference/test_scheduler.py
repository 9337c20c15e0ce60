"""Who runs, who waits, and whose memory is used again."""

from collections.abc import Callable

import pytest
import torch

from mindspeed_llm.inference import memory
from mindspeed_llm.inference.memory import KeyValues, Shape
from mindspeed_llm.inference.reply import Ticket
from mindspeed_llm.inference.sampling import GREEDY, Sampling
from mindspeed_llm.inference.scheduler import Scheduler, common

SHAPE = Shape(windows=(None,), groups=1, head_dim=1, limit=4096, dtype=torch.float32,
              device=torch.device("cpu"))  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BLOCK", 16)


@pytest.fixture
def ask() -> Callable[..., Ticket]:
    count = iter(range(1000))

    def make(prompt: range | list[int], limit: int = 8, echo: bool = False) -> Ticket:
        sampling = Sampling(logprobs=0) if echo else GREEDY
        return Ticket(next(count), list(prompt), sampling, limit, echo=echo)

    return make


def scheduler(**options: int | None) -> Scheduler:
    return Scheduler(lambda: KeyValues(SHAPE), **options)


def step(it: Scheduler) -> dict[int, tuple[int, int]]:
    """One step that draws id 1 for everyone: ticket -> (new ids, wanted logits)."""
    found = {}
    for share in it.shares():
        share.ticket.held.open(len(share.ids))
        found[share.ticket.number] = (len(share.ids), share.wanted)
        if share.wanted and not share.ticket.is_reading:
            share.ticket.take(1, None, frozenset())
            if share.ticket.reply.stop:
                it.leave(share.ticket)
    return found


def run(it: Scheduler) -> None:
    while it.running or it.waiting:
        assert step(it), "nobody can go on"


def test_a_long_prompt_is_read_in_chunks_while_others_go_on(ask: Callable) -> None:
    it = scheduler(chunk=20)
    short, long = ask(range(5)), ask(range(100, 150))
    it.join(short)
    assert step(it) == {short.number: (5, 1)}
    it.join(long)
    assert step(it) == {short.number: (1, 1), long.number: (20, 0)}
    assert step(it) == {short.number: (1, 1), long.number: (20, 0)}
    assert step(it) == {short.number: (1, 1), long.number: (10, 1)}
    assert step(it) == {short.number: (1, 1), long.number: (1, 1)}


def test_a_conversation_goes_on_in_its_own_memory(ask: Callable) -> None:
    it = scheduler(budget=1000)
    first = ask(range(100, 140))
    it.join(first)
    run(it)
    assert it.last == [*range(100, 140), *[1] * 7], "nothing came after the last id"
    then = ask([*first.prompt, *first.reply.ids, 7, 8])
    it.join(then)
    assert step(it) == {then.number: (3, 1)}
    assert then.reply.cached_tokens == 47
    run(it)
    assert len(it._idle) == 1


def test_a_shared_beginning_is_copied_and_the_other_conversation_kept(ask: Callable) -> None:
    it = scheduler(budget=1000)
    first, second = ask(range(200)), ask([*range(60), 999, 998])
    it.join(first)
    run(it)
    it.join(second)
    assert step(it) == {second.number: (2, 1)}
    assert second.reply.cached_tokens == 60
    run(it)
    assert [len(idle.ids) for idle in it._idle] == [207, 69]


def test_equal_prompts_are_read_once(ask: Callable) -> None:
    it = scheduler(chunk=50)
    tickets = [ask(range(120)) for _ in range(3)]
    other = ask(range(500, 505))
    for ticket in (*tickets, other):
        it.join(ticket)
    first, second, third = tickets
    assert step(it) == {first.number: (50, 0)}
    assert other in it.running, "those who need not wait do not"
    step(it)
    assert step(it) == {first.number: (20, 1), other.number: (5, 1)}
    assert step(it) == {first.number: (1, 1), second.number: (1, 1), third.number: (1, 1),
                        other.number: (1, 1)}  # fmt: skip
    assert [t.reply.cached_tokens for t in tickets] == [0, 119, 119]


def test_the_budget_bounds_memory_and_the_oldest_goes_first(ask: Callable) -> None:
    it = scheduler(budget=160)
    prompts = [range(start, start + 40) for start in (0, 100, 200)]
    for prompt in prompts:
        it.join(ask(prompt))
        run(it)
        assert it.used <= 160
    assert [idle.ids[0] for idle in it._idle] == [0, 100, 200]
    again = ask(range(10, 30))
    it.join(again)
    run(it)
    assert it.used <= 160
    assert [idle.ids[0] for idle in it._idle] == [100, 200, 10]


def test_who_does_not_fit_waits_in_order(ask: Callable) -> None:
    it = scheduler(budget=128)
    first, second, third = ask(range(100)), ask(range(200, 290)), ask(range(5))
    for ticket in (first, second, third):
        it.join(ticket)
    step(it)
    assert it.running == [first] and it.waiting == [second, third]
    run(it)
    assert all(t.reply.stop == "length" for t in (first, second, third))


def test_rows_are_bounded(ask: Callable) -> None:
    it = scheduler(rows=2)
    for start in range(5):
        it.join(ask([start * 10]))
    step(it)
    assert len(it.running) == 2
    run(it)


def test_whoever_leaves_early_leaves_what_he_read(ask: Callable) -> None:
    it = scheduler(chunk=20, budget=1000)
    ticket, other = ask(range(100)), ask(range(200, 210))
    it.join(ticket)
    step(it)
    it.leave(ticket)
    assert it.last == list(range(20)) and not it.running
    it.join(other)
    it.leave(other)
    assert not it.waiting
    it.forget()
    assert it.last == [] and it.used == 0


def test_an_echo_reads_everything_and_wants_all_logits(ask: Callable) -> None:
    it = scheduler(budget=1000)
    it.join(ask(range(100)))
    run(it)
    echo = ask(range(100), 1, echo=True)
    it.join(echo)
    assert [step(it)[echo.number] for _ in range(2)] == [(64, 64), (36, 36)]
    assert echo.reply.cached_tokens == 0


def test_common_beginnings() -> None:
    assert common([], [1]) == 0 and common([1, 2], [1, 2, 3]) == 2
    for same in range(9):
        one, other = list(range(9)), [*range(same), *[-1] * (9 - same)]
        assert common(one, other) == same
