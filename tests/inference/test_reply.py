"""What a reply takes, and which of its ids are asked for."""

import pytest
import torch

from mindspeed_llm.inference.memory import KeyValues, Shape
from mindspeed_llm.inference.reply import Ticket
from mindspeed_llm.inference.sampling import GREEDY, Logprob, Sampling


def test_ids_run_from_the_prompt_into_the_reply() -> None:
    ticket = Ticket(1, [5, 6, 7], GREEDY, 3, echo=False)
    for token in (8, 9):
        ticket.take(token, None, frozenset())
    assert ticket.length == 5
    assert ticket.ids(0, 5) == [5, 6, 7, 8, 9]
    assert ticket.ids(1, 4) == [6, 7, 8] and ticket.ids(4, 5) == [9] and ticket.ids(0, 2) == [5, 6]


def test_a_reply_ends_by_a_stop_id_or_its_length() -> None:
    ticket = Ticket(1, [5], GREEDY, 2, echo=False)
    ticket.take(3, Logprob(-1.0, []), frozenset({4}))
    assert ticket.reply.stop is None and len(ticket.reply.logprobs) == 1
    ticket.take(6, None, frozenset({4}))
    assert (ticket.reply.stop, ticket.reply.ids) == ("length", [3, 6])
    other = Ticket(2, [5], GREEDY, 2, echo=False)
    other.take(4, None, frozenset({4}))
    assert (other.reply.stop, other.reply.ids) == ("stop", [])


def test_it_reads_until_memory_holds_the_prompt() -> None:
    ticket = Ticket(1, [5, 6], GREEDY, 2, echo=False)
    assert ticket.is_reading
    shape = Shape(windows=(None,), groups=1, head_dim=1, limit=8, dtype=torch.float32,
                  device=torch.device("cpu"))  # fmt: skip
    ticket.held = KeyValues(shape)
    ticket.held.open(1)
    assert ticket.is_reading
    ticket.held.open(1)
    assert not ticket.is_reading


def test_an_echo_says_how_many_alternatives() -> None:
    Ticket(1, [5], Sampling(logprobs=0), 1, echo=True)
    with pytest.raises(AssertionError):
        Ticket(1, [5], GREEDY, 1, echo=True)
