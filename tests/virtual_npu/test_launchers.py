"""The guide's launchers for Gemma 2, as they are, with DEVICE=npu on a tiny checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from test_training import CPU_PYTHON

ROOT = Path(__file__).resolve().parents[2]
GEMMA = ROOT / "examples/mcore/gemma2"
FP32 = {"PRECISION": "fp32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a launcher, or one of the guide's scripts, on a machine with two NPUs or on a CPU."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def start(what, *args, device="npu", stdin="", **settings):
        python = sys.executable if device == "npu" else CPU_PYTHON
        env = os.environ | {"DEVICE": device, "PYTHON": python, "OMP_NUM_THREADS": "1",
                            "VIRTUAL_NPU": "2" if device == "npu" else "0", "LOG_DIR": "logs",
                            "PYTHONPATH": str(ROOT)}  # fmt: skip
        env |= {name: str(value) for name, value in settings.items()}
        command = ["bash", GEMMA / what] if what.endswith(".sh") else [python, ROOT / what]
        done = subprocess.run([*command, *args], cwd=elsewhere, env=env, input=stdin, text=True,
                              capture_output=True, timeout=600, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    return start


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_hf_model, tiny_tokenizer_dir):
    directory = tmp_path_factory.mktemp("gemma2") / "hf"
    tiny_hf_model("gemma2", directory, vocab_size=480, max_position_embeddings=256)
    for path in tiny_tokenizer_dir.iterdir():
        shutil.copy(path, directory)
    return directory


@pytest.fixture(scope="module")
def prepared(run, model, tmp_path_factory):
    """Steps 1 and 2 of the guide, and rows to evaluate on."""
    work = tmp_path_factory.mktemp("prepared")
    row = {"instruction": "Remember why I came?", "input": "", "output": "Yes.",
           "histories": [["My sister likes pink roses.", "Got it."]]}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row] * 8), work / "rows.parquet")
    run("data_convert_gemma2_instruction.sh", INPUT=work / "rows.parquet", TOKENIZER_MODEL=model,
        DATA_PATH=work / "data/alpaca", WORKERS=1)  # fmt: skip
    run("ckpt_convert_gemma2_hf2mcore.sh", HF_DIR=model, MCORE_DIR=work / "mcore", TP=2)
    return work


def losses(run, launcher, prepared, tuned, model, **settings):
    done = run(launcher, DATA_PATH=prepared / "data/alpaca", CKPT_LOAD_DIR=prepared / "mcore",
               CKPT_SAVE_DIR=tuned, TOKENIZER_MODEL=model, SEQ_LENGTH=128, GBS=2, LR="1e-3",
               MIN_LR="1e-4", **settings)  # fmt: skip
    device = settings.get("device", "npu")
    assert f"device: {device}" in done.stderr + done.stdout
    rows = (tuned / "logs/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["loss"] for row in rows]


def replies(run, checkpoint, model, file, **settings):
    """What the generating launcher answers, greedily."""
    run("generate_gemma2_9b_ptd.sh", "--prompt", "Hello", "--output", file, CHECKPOINT=checkpoint,
        TOKENIZER_PATH=model, MAX_NEW_TOKENS=6, **FP32, **settings)  # fmt: skip
    (reply,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return reply["text"] if "text" in reply else reply


def test_tune_chat_generate_and_export(run, model, prepared, tmp_path):
    tuned = tmp_path / "tuned"
    found = losses(run, "tune_gemma2_9b_full_ptd.sh", prepared, tuned, model, TP=1, TRAIN_ITERS=3)
    assert len(found) == 3 and found[2] < found[0]  # the first step warms up, at rate 0
    said = run("chat_gemma2_9b_ptd.sh", CHECKPOINT=tuned, TOKENIZER_PATH=model, TP=1,
               MAX_NEW_TOKENS=4, stdin="hello\nagain\nq\n").stdout  # fmt: skip
    assert said.count("MindSpeed-LLM:") >= 2
    npu, cpu = (replies(run, tuned, model, tmp_path / f"{device}.jsonl", device=device, TP=1)
                for device in ("npu", "cpu"))  # fmt: skip
    assert npu == cpu
    run("ckpt_convert_gemma2_mcore2hf.sh", CHECKPOINT=tuned, HF_SAVE_DIR=tmp_path / "hf")
    old, new = (load_file(d / "model.safetensors") for d in (model, tmp_path / "hf"))
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_adapters_on_two_devices_chat_and_evaluation(run, model, prepared, tmp_path):
    tuned, results = tmp_path / "lora", {}
    lora = {"TP": 2, "TRAIN_ITERS": 2, "LORA_R": 4, **FP32}
    found = losses(run, "tune_gemma2_9b_lora_ptd.sh", prepared, tuned, model, **lora)
    expected = losses(run, "tune_gemma2_9b_lora_ptd.sh", prepared, tmp_path / "cpu", model,
                      device="cpu", **lora)  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-5)
    said = run("chat_gemma2_9b_ptd.sh", CHECKPOINT=tuned, TOKENIZER_PATH=model, TP=2,
               MAX_NEW_TOKENS=4, stdin="hello\nq\n", **FP32).stdout  # fmt: skip
    assert "MindSpeed-LLM:" in said
    for device in ("npu", "cpu"):
        file = tmp_path / f"{device}.json"
        run("evaluation.py", "--load", tuned, "--prompt-type", "gemma", "--handler-name",
            "AlpacaStyleInstructionHandler", "--input", prepared / "rows.parquet", "--json", file,
            "--max-conversations", "2", device=device)  # fmt: skip
        results[device] = json.loads(file.read_text(encoding="utf-8"))
    npu, cpu = (list(numbers(results[device])) for device in ("npu", "cpu"))
    assert cpu and npu == pytest.approx(cpu, rel=1e-4, abs=1e-6)


def numbers(found, name=""):
    """The numbers of a report, but for times."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from numbers(value, key)
    elif isinstance(found, list):
        for value in found:
            yield from numbers(value, name)
    elif isinstance(found, float) and "second" not in name and "time" not in name:
        yield found
