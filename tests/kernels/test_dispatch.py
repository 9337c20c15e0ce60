"""The choice of a kernel: order, reasons, fall-backs that are named, demanded, or switched off."""

import logging

import pytest
import torch

from mindspeed_llm.errors import KernelError
from mindspeed_llm.kernels import dispatch
from mindspeed_llm.kernels.dispatch import Candidate, Need

PLAIN = Candidate("plain", "rms_norm:rms_norm", "works everywhere", fused=False)
QUICK = Candidate("quick", "activation:swiglu", "fused")
ABSENT = Candidate("absent", "nowhere:f", "fused", available=lambda: "it is not installed")
NARROW = Candidate(
    "narrow", "nowhere:f", "fused", fits=lambda need: "it has no soft cap" if need.softcap else None
)


@pytest.fixture
def strict():
    dispatch.require_fused(True)
    yield
    dispatch.require_fused(False)


def test_the_first_that_is_there_and_fits_is_taken():
    choice = dispatch.look("op", "npu", Need(), (ABSENT, QUICK, PLAIN))
    assert choice.candidate is QUICK and not choice.is_fall_back
    assert choice.passed == ("absent: it is not installed",)
    assert choice.why == "fused; not absent: it is not installed"


def test_what_does_not_fit_is_passed_over():
    assert dispatch.look("op", "npu", Need(), (NARROW, PLAIN)).candidate is NARROW
    choice = dispatch.look("op", "npu", Need(softcap=2.0), (NARROW, PLAIN))
    assert choice.candidate is PLAIN and choice.is_fall_back
    assert choice.passed == ("narrow: it has no soft cap",)


def test_the_cpu_falls_back_to_nothing_it_is_the_reference():
    assert not dispatch.look("op", "cpu", Need(), (ABSENT, PLAIN)).is_fall_back
    assert not dispatch.look("op", "cuda", Need(), (PLAIN,)).is_fall_back


def test_a_fall_back_is_said_once(monkeypatch):
    said = []
    handler = logging.Handler()  # pytest's own may hang at two loggers, and then sees all twice
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("mindspeed_llm.kernels.dispatch")
    logger.addHandler(handler)
    monkeypatch.setattr(dispatch._policy, "said", set())
    try:
        for _ in range(2):
            assert dispatch.choose("op", "npu", Need(), (ABSENT, PLAIN)).candidate is PLAIN
    finally:
        logger.removeHandler(handler)
    assert said == ["op on npu runs as plain (works everywhere; not absent: it is not installed)"]


def test_a_demand_turns_it_into_an_error(strict):
    with pytest.raises(KernelError, match="--require-fused: op on npu runs as plain .*absent"):
        dispatch.choose("op", "npu", Need(), (ABSENT, PLAIN))
    assert dispatch.choose("op", "npu", Need(), (QUICK, PLAIN)).call is QUICK.load()
    assert dispatch.choose("op", "cpu", Need(), (ABSENT, PLAIN)).call is PLAIN.load()


def test_the_environment_demands_it_of_programs_that_are_not_ours(monkeypatch):
    monkeypatch.setenv(dispatch.REQUIRE, "1")
    with pytest.raises(KernelError, match=f"{dispatch.REQUIRE}: op on npu runs as plain"):
        dispatch.choose("op", "npu", Need(), (ABSENT, PLAIN))


@pytest.mark.parametrize("value", ["", "0"])
def test_the_environment_can_also_not_demand_it(value, monkeypatch):
    monkeypatch.setenv(dispatch.REQUIRE, value)
    assert dispatch.choose("op", "npu", Need(), (ABSENT, PLAIN)).candidate is PLAIN


def test_another_word_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv(dispatch.REQUIRE, "no")
    with pytest.raises(KernelError, match=f"{dispatch.REQUIRE} is 'no'; expected 1"):
        dispatch.choose("op", "npu", Need(), (ABSENT, PLAIN))


def test_a_name_that_passes_nothing_over_is_refused(monkeypatch):
    monkeypatch.setenv(dispatch.WITHOUT, "quick, qiuck")
    with pytest.raises(KernelError, match="names 'qiuck', which is no kernel .*: quick, other"):
        dispatch.check_without(("quick", "other"))
    monkeypatch.setenv(dispatch.WITHOUT, "quick,")
    dispatch.check_without(("quick", "other"))


def test_kernels_can_be_passed_over_by_name(monkeypatch):
    monkeypatch.setenv(dispatch.WITHOUT, "other, quick")
    choice = dispatch.look("op", "npu", Need(), (QUICK, PLAIN))
    assert choice.candidate is PLAIN and choice.is_fall_back
    assert choice.passed == (f"quick: {dispatch.WITHOUT} names it",)


def test_what_is_needed_is_a_value():
    assert Need(dtype=torch.bfloat16, window=4) == Need(dtype=torch.bfloat16, window=4)
    assert len({Need(), Need(), Need(dropout=0.1)}) == 2
