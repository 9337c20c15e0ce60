"""What rank 0 says reaches every rank, as JSON; alone it is an echo."""

from collections.abc import Callable

import pytest

from mindspeed_llm.inference.ranks import Ranks


def test_alone() -> None:
    ranks = Ranks()
    assert ranks.is_leader and ranks.is_source and ranks.size == 1
    assert ranks.request({"do": "x"}) == {"do": "x"}
    assert ranks.share([4, 5], src=0) == [4, 5]


def _exchange() -> list:
    import torch

    from mindspeed_llm.inference.ranks import Ranks

    ranks = Ranks(source=1)
    message = {"do": "talk", "text": "héé 🎉", "ids": [1, 2, 3]}
    heard = [ranks.request(message if ranks.is_leader else None)]
    heard.append(ranks.share([10 + ranks.rank, 7], src=1))
    heard.append(ranks.share([0.1 + ranks.rank], src=1, dtype=torch.float64))
    return [ranks.is_leader, ranks.is_source, *heard]


def test_two_ranks_hear_the_same(run_ranks: Callable) -> None:
    first, second = run_ranks(2, _exchange)
    assert (first[:2], second[:2]) == ([True, False], [False, True])
    message = {"do": "talk", "text": "héé 🎉", "ids": [1, 2, 3]}
    assert first[2:] == second[2:] == [message, [11, 7], [1.1]]


def test_only_rank_0_may_ask() -> None:
    with pytest.raises(AssertionError):
        Ranks().request()
