"""Learning rates equal their formulas; a changed schedule is not continued by accident."""

import math

import pytest

from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.training.schedule import (
    build_schedule,
    check_schedule,
    restore_schedule,
    schedule_state,
)


class Groups:
    """All that a schedule asks of an optimizer."""

    def __init__(self):
        self.param_groups = [{"wd_mult": 1.0}, {"wd_mult": 0.0}]


def rates(iterations=10, batch_size=8, **fields):
    groups = Groups()
    settings = OptimizerSettings(lr=1.0, weight_decay=0.1, **fields)
    schedule = build_schedule(groups, settings, iterations=iterations, batch_size=batch_size)
    seen = []
    for _ in range(iterations):
        seen.append(groups.param_groups[0]["lr"])
        assert [group["weight_decay"] for group in groups.param_groups] == [0.1, 0.0]
        schedule.step(batch_size)
    return seen


def test_linear_decays_from_the_first_step():
    assert rates(min_lr=0.5) == pytest.approx([1 - 0.05 * i for i in range(10)])


def test_cosine_with_warm_up():
    expected = [0.0, 0.5] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates(lr_decay_style="cosine", lr_warmup_iters=2) == pytest.approx(expected)
    assert rates(lr_decay_style="cosine", lr_warmup_fraction=0.2) == pytest.approx(expected)


def test_constant_and_wsd():
    assert rates(lr_decay_style="constant") == [1.0] * 10
    stable = rates(lr_decay_style="WSD", lr_wsd_decay_iters=5, lr_wsd_decay_style="linear")
    assert stable == pytest.approx([1.0] * 6 + [0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lr_warmup_iters": 10}, "--lr-warmup-iters 10 is not below the 10"),
        ({"lr_warmup_iters": 4, "lr_decay_iters": 4}, "the 4 iterations"),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 8, "lr_warmup_iters": 3}, "do not fit"),
    ],
)
def test_a_schedule_that_does_not_fit(fields, words):
    with pytest.raises(ConfigError, match=words):
        check_schedule(OptimizerSettings(lr=1.0, **fields), 10)


def make(iterations, **fields):
    groups = Groups()
    settings = OptimizerSettings(lr=1.0, **fields)
    return groups, build_schedule(groups, settings, iterations=iterations, batch_size=4)


def test_a_continued_schedule_is_where_it_was():
    groups, schedule = make(10)
    for _ in range(6):
        schedule.step(4)
    again, fresh = make(10)
    restore_schedule(fresh, schedule.state_dict(), override=False)
    assert again.param_groups == groups.param_groups


def test_another_schedule_is_refused_unless_overridden():
    _, schedule = make(10)
    schedule.step(20)
    groups, longer = make(20)
    with pytest.raises(ConfigError, match=r"the decay .* is 80, the checkpoint has 40.*--override"):
        restore_schedule(longer, schedule.state_dict(), override=False)
    restore_schedule(longer, schedule.state_dict(), override=True)
    assert groups.param_groups[0]["lr"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("was", "now", "flag"),
    [
        ({"lr_warmup_iters": 4}, {"lr_warmup_iters": 4, "lr_warmup_init": 0.5}, "--lr-warmup-init"),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 4},
         {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 2}, "--lr-wsd-decay-iters"),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 4},
         {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 4, "lr_wsd_decay_style": "cosine"},
         "--lr-wsd-decay-style"),
    ],
)  # fmt: skip
def test_settings_that_megatron_core_forgets_are_compared(was, now, flag):
    _, schedule = make(10, **was)
    schedule.step(8)
    _, other = make(10, **now)
    with pytest.raises(ConfigError, match=f"{flag}.* is .*, the checkpoint has"):
        restore_schedule(other, schedule_state(schedule), override=False)
    _, same = make(10, **was)
    restore_schedule(same, schedule_state(schedule), override=False)
    assert same.num_steps == 8


def test_a_constant_rate_may_go_on_for_longer():
    _, schedule = make(10, lr_decay_style="constant")
    schedule.step(40)
    groups, longer = make(20, lr_decay_style="constant")
    restore_schedule(longer, schedule.state_dict(), override=False)
    assert groups.param_groups[0]["lr"] == 1.0 and longer.num_steps == 40
