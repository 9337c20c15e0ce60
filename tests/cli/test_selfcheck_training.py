"""Tests of mindspeed_llm.cli.selfcheck_training; test_selfcheck runs it on the CPU."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mindspeed_llm.cli import selfcheck_training as check


@pytest.mark.parametrize(("found", "state"), [
    ([4.0, 3.0], "pass"),
    ([4.00039, 3.0], "pass"),
    ([4.0, 3.001], "fail"),
    ([4.0, math.nan], "fail"),
    ("exit code 1: out of memory", "fail"),
])  # fmt: skip
def test_losses_decide(found, state):
    done = check.result("npu", "float32", [4.0, 3.0], found)
    assert (done.state, done.reason == "") == (state, state == "pass")
    if isinstance(found, str):
        assert done.reason == found


def test_a_failed_reference_fails():
    done = check.result("npu", "bfloat16", "exit code 2: no disk", [4.0])
    assert done.state == "fail" and done.reason == "exit code 2: no disk"


def test_a_run_that_fails_says_its_last_words(tmp_path):
    found = check._losses(tmp_path, "cpu", "float32")
    assert found.startswith("exit code 2: error: ") and str(tmp_path) in found


def test_the_model_is_transformers(tmp_path):
    """Its names and shapes, all of them; and both caps and the window change what it says."""
    directory = tmp_path / "model"
    check._write_model(directory)
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(load_file(directory / "model.safetensors")) == 2 + 4 * 11
    check._write_conversations(tmp_path / "talk.jsonl")
    (talk, *rest) = map(json.loads, (tmp_path / "talk.jsonl").read_text().splitlines())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(talk["messages"][0]["content"] * 4, return_tensors="pt").input_ids
    assert len(rest) == 23 and ids.max() < check._CONFIG["vocab_size"] and ids.shape[1] > 16
    with torch.no_grad():
        before = model(ids).logits
        for name, value in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
            setattr(model.config, name, value)
            for layer in model.model.layers:
                layer.self_attn.attn_logit_softcapping = model.config.attn_logit_softcapping
            after = model(ids).logits
            assert (after - before).abs().max() > 1e-2
            before = after
