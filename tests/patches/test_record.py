"""Tests of mindspeed_llm.patches.record."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_llm.patches.record import Outcome, Patch, Report

GOOD = {
    "target": "package.module:Class.method",
    "adapter": "ours:thing",
    "kind": "wrap",
    "why": "it is wrong",
    "upstream": "none",
    "remove_when": "it is right",
}


def test_frozen_and_lists_its_targets():
    patch = Patch(**GOOD, rebind=("package.other:Class",))
    assert patch.targets == ("package.module:Class.method", "package.other:Class")
    with pytest.raises(dataclasses.FrozenInstanceError):
        patch.why = "other"


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "package.module.name"},
        {"target": "package.*:torch"},
        {"kind": "inject"},
        {"kind": "guess"},
        {"rebind": ("nowhere",)},
        {"adapter": "ours.thing"},
        {"devices": ()},
        {"devices": ("gpu",)},
        {"why": " "},
        {"upstream": ""},
        {"remove_when": ""},
    ],
)
def test_incomplete_entries_cannot_be_written(wrong):
    with pytest.raises(ValueError, match="patch has|adapter|kind|devices|is empty"):
        Patch(**GOOD | wrong)


def test_report_by_target():
    outcome = Outcome(Patch(**GOOD), "skipped", "not for cpu")
    assert Report("cpu", "0.16.1", (outcome,)).by_target() == {GOOD["target"]: outcome}
