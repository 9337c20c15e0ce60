"""What ranks tell each other, alone and in processes of their own."""

import pytest

from mindspeed_llm.checkpoint import ranks
from mindspeed_llm.errors import CheckpointError


def test_alone():
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    assert ranks.gather({"a": [1]}) == [{"a": [1]}] and ranks.from_first(3) == 3
    with ranks.together("x"):
        pass
    with pytest.raises(CheckpointError, match="^the file$"), ranks.together("x"):
        raise CheckpointError("the file")
    with pytest.raises(CheckpointError, match="^x: .*full"), ranks.together("x"):
        raise OSError(28, "full")
    with pytest.raises(ZeroDivisionError), ranks.together("x"):
        raise ZeroDivisionError


def talk():
    from mindspeed_llm.checkpoint import ranks
    from mindspeed_llm.errors import CheckpointError

    mine = ranks.rank()
    out = [ranks.gather([mine]), ranks.from_first(f"rank {mine}"), ranks.world_size()]
    for failing in ([], [1], [0, 1]):
        try:
            with ranks.together("step"):
                if mine in failing:
                    raise CheckpointError("the disk is full")
            out.append("ok")
        except CheckpointError as err:
            out.append(str(err))
    return out


def test_two_ranks_agree_on_every_failure(run_ranks):
    results = run_ranks(2, talk)
    assert results[0] == results[1] == [
        [[0], [1]], "rank 0", 2, "ok", "rank 1: the disk is full", "the disk is full",
    ]  # fmt: skip
