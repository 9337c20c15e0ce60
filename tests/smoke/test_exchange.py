"""Holds that checkpoints of others train and talk like the Hugging Face model they were made of,
and that what was tuned here answers in transformers and in PEFT what it answers here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore
from mindspeed_llm.checkpoint.hf_source import HFWeights
from mindspeed_llm.models.names import to_mcore

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
PROMPT = "My sister likes pink roses."
pytestmark = pytest.mark.slow


def run(script, *flags):
    done = subprocess.run([sys.executable, ROOT / script, *map(str, flags)], env=ENV, text=True,
                          capture_output=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def reply(load, folder, *flags):
    """What inference.py answers to a plain text, greedily."""
    output = folder / f"{load.name}.jsonl"
    run("inference.py", "--task", "greedy", "--load", load, "--prompt", PROMPT,
        "--max-new-tokens", 12, "--output", output, *flags)  # fmt: skip
    return json.loads(output.read_text())["reply"]


def train(load, save, prefix, *flags):
    """The losses of three steps."""
    said = run("posttrain_gpt.py", "--stage", "sft", "--is-instruction-dataset", "--finetune",
               "--load", load, "--save", save, "--data-path", prefix, "--seq-length", 32,
               "--train-iters", 3, "--global-batch-size", 4, "--lr", "1e-2", "--log-interval", 1,
               "--lr-decay-style", "constant", *flags)  # fmt: skip
    losses = re.findall(r"loss[: ]+([0-9.]+)", said)
    assert len(losses) >= 3, said[-3000:]
    return losses


@pytest.fixture
def prefix(tmp_path, tiny_sft_data, tiny_tokenizer_dir):
    return tiny_sft_data(tmp_path / "rows", tiny_tokenizer_dir)


@pytest.fixture
def model(tiny_chat_model):
    return tiny_chat_model("llama")


def torch_dist(model, root):
    hf_to_mcore(model, root, ckpt_format="torch_dist")


def mp_rank(model, root):
    """The older layout, one rank; its config.json lies in root/hf, as the error message asks."""
    weights = HFWeights(model)
    stored = load_file(model / "model.safetensors")
    whole = {rule.mcore: to_mcore(rule, weights.model, [stored[name] for name in rule.hf])
             for rule in weights.rules}  # fmt: skip
    place = root / "release" / "mp_rank_00"
    place.mkdir(parents=True)
    torch.save({"model": whole, "checkpoint_version": 3.0}, place / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text("release")
    (root / "hf").symlink_to(model)


@pytest.mark.parametrize("make", [torch_dist, mp_rank])
def test_checkpoints_of_others_train_and_talk(make, model, prefix, tmp_path):
    make(model, tmp_path / "theirs")
    flags = ("--trust-pickle",)
    assert reply(tmp_path / "theirs", tmp_path, *flags) == reply(model, tmp_path)
    assert train(tmp_path / "theirs", tmp_path / "a", prefix, *flags) == train(
        model, tmp_path / "b", prefix
    )


def generated(directory, adapter=None):
    """transformers' own greedy answer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if adapter is not None:
        import peft

        theirs = peft.PeftModel.from_pretrained(theirs, adapter)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    out = theirs.eval().generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_tuned_model_answers_in_transformers_what_it_answers_here(model, prefix, tmp_path):
    train(model, tmp_path / "tuned", prefix, "--save-hf", tmp_path / "hf")
    answer = reply(tmp_path / "tuned", tmp_path)
    assert answer and answer != reply(model, tmp_path), "training has changed it"
    assert generated(tmp_path / "hf") == answer == reply(tmp_path / "hf", tmp_path)


def test_a_tuned_adapter_answers_in_peft_what_it_answers_here(model, prefix, tmp_path):
    train(model, tmp_path / "tuned", prefix, "--lora-r", 4, "--lora-alpha", 64)
    run("convert_ckpt.py", "--load-model-type", "mg", "--save-model-type", "hf", "--load-dir",
        tmp_path / "tuned", "--save-dir", tmp_path / "peft", "--save-lora-to-hf")  # fmt: skip
    answer = reply(tmp_path / "tuned", tmp_path)
    assert answer and answer != reply(model, tmp_path), "training has changed it"
    assert generated(model, tmp_path / "peft") == answer
