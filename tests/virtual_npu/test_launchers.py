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

ROOT = Path(__file__).resolve().parents[2]
GEMMA = ROOT / "examples/mcore/gemma2"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a launcher on a machine with one NPU; its completed process."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def start(launcher, *args, stdin="", **settings):
        env = os.environ | {"DEVICE": "npu", "VIRTUAL_NPU": "1", "PYTHON": sys.executable,
                            "OMP_NUM_THREADS": "1", "LOG_DIR": "logs"}  # fmt: skip
        env |= {name: str(value) for name, value in settings.items()}
        done = subprocess.run(["bash", GEMMA / launcher, *args], cwd=elsewhere, env=env,
                              input=stdin, text=True, capture_output=True, timeout=600,
                              check=False)  # fmt: skip
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


def test_the_guides_steps(run, model, tmp_path):
    row = {"instruction": "Remember why I came?", "input": "", "output": "Yes.",
           "histories": [["My sister likes pink roses.", "Got it."]]}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row] * 8), tmp_path / "rows.parquet")
    data, mcore, tuned = tmp_path / "data/alpaca", tmp_path / "mcore", tmp_path / "tuned"
    run("data_convert_gemma2_instruction.sh", INPUT=tmp_path / "rows.parquet",
        TOKENIZER_MODEL=model, DATA_PATH=data, WORKERS=1)  # fmt: skip
    run("ckpt_convert_gemma2_hf2mcore.sh", HF_DIR=model, MCORE_DIR=mcore, TP=1)
    done = run("tune_gemma2_9b_full_ptd.sh", DATA_PATH=data, CKPT_LOAD_DIR=mcore,
               CKPT_SAVE_DIR=tuned, TOKENIZER_MODEL=model, TP=1, SEQ_LENGTH=128, GBS=2,
               TRAIN_ITERS=3, LR="1e-3", MIN_LR="1e-4")  # fmt: skip
    assert "device: npu" in done.stderr + done.stdout
    losses = [json.loads(line)["loss"] for line in
              (tuned / "logs/train.jsonl").read_text().splitlines()]  # fmt: skip
    assert len(losses) == 3 and losses[2] < losses[0]  # the first step warms up, at rate 0
    said = run("chat_gemma2_9b_ptd.sh", CHECKPOINT=tuned, TOKENIZER_PATH=model, TP=1,
               MAX_NEW_TOKENS=4, stdin="hello\nagain\nq\n").stdout  # fmt: skip
    assert said.count("MindSpeed-LLM:") >= 2
