"""Runs every launcher, unedited, on a tiny random Gemma 2: the guide's steps at TP 1 and TP 2."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
GEMMA = ROOT / "examples/mcore/gemma2"
GUIDE_TURNS = (
    "My sister's birthday is tomorrow and I need a birthday bouquet.",
    "She likes pink roses. The color is pink.",
)
SIX = sorted(f"alpaca_packed_{part}_document.{end}"
             for part in ("input_ids", "labels", "attention_mask")
             for end in ("bin", "idx"))  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_hf_model, tiny_tokenizer_dir):
    """A tiny Gemma 2 whose vocabulary is that of its tokenizer, as one Hugging Face directory."""
    directory = tmp_path_factory.mktemp("gemma2") / "gemma2_hf"
    tiny_hf_model("gemma2", directory, vocab_size=480, max_position_embeddings=256)
    for path in tiny_tokenizer_dir.iterdir():
        shutil.copy(path, directory)
    return directory


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """The guide's parquet file: Alpaca columns and `histories`."""
    path = tmp_path_factory.mktemp("dataset") / "train.parquet"
    row = {"instruction": "Here I go again. Remember why I came?", "input": "",
           "output": "Yes, for your sister.",
           "histories": [[turn, "Got it."] for turn in GUIDE_TURNS]}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row | {"output": f"Yes {i}"} for i in range(8)]), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a launcher from a directory that is not the repository; its completed process."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def start(launcher, *args, stdin="", check=True, **settings):
        env = os.environ | {
            "DEVICE": "cpu",
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "LOG_DIR": "logs",
        }
        env |= {name: str(value) for name, value in settings.items()}
        env.pop("PYTHONPATH", None)
        done = subprocess.run(["bash", launcher, *args], cwd=elsewhere, env=env, input=stdin,
                              text=True, capture_output=True, timeout=300, check=False)  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    return start


@pytest.fixture(scope="module")
def prepared(run, model, dialogues, tmp_path_factory):
    """Steps 1 and 2 of the guide: prefix of the six files, and the converted checkpoint."""
    work = tmp_path_factory.mktemp("prepared")
    data, mcore = work / "data/alpaca", work / "mcore"
    run(GEMMA / "data_convert_gemma2_instruction.sh", INPUT=dialogues, TOKENIZER_MODEL=model,
        DATA_PATH=data, WORKERS=1)  # fmt: skip
    run(GEMMA / "ckpt_convert_gemma2_hf2mcore.sh", HF_DIR=model, MCORE_DIR=mcore, TP=2)
    return data, mcore


def test_preparation_leaves_the_guides_files(prepared):
    data, mcore = prepared
    assert set(SIX) <= {path.name for path in data.parent.iterdir()}
    assert (mcore / "latest_checkpointed_iteration.txt").read_text().strip() == "release"


@pytest.mark.parametrize("tp", [1, 2])
def test_tune_generate_and_chat(run, model, prepared, tmp_path, tp):
    data, mcore = prepared
    layout = {"TP": tp, "PP": 1, "PRECISION": "fp32", "LOG_DIR": tmp_path / "logs"}
    tuned = tmp_path / "ckpt"
    done = run(GEMMA / "tune_gemma2_9b_full_ptd.sh", "--log-interval", "1", DATA_PATH=data,
               CKPT_LOAD_DIR=mcore, CKPT_SAVE_DIR=tuned, TOKENIZER_MODEL=model, SEQ_LENGTH=128,
               GBS=4, TRAIN_ITERS=2, LR="1e-3", MIN_LR="1e-4", **layout)  # fmt: skip
    assert (tuned / "latest_checkpointed_iteration.txt").read_text().strip() == "2"
    assert "device: cpu, fp32" in done.stderr
    assert "iteration 2/2" in (tmp_path / "logs/tune_gemma2_9b_full_ptd.log").read_text()

    talk = "\n".join([*GUIDE_TURNS, "quit"]) + "\n"
    done = run(GEMMA / "chat_gemma2_9b_ptd.sh", stdin=talk, CHECKPOINT=tuned, TOKENIZER_PATH=model,
               MAX_NEW_TOKENS=4, **layout)  # fmt: skip
    assert done.stdout.count("You >> ") == 3
    assert done.stdout.count("MindSpeed-LLM:") >= 2
    if tp == 1:
        return
    replies = tmp_path / "replies.jsonl"
    run(GEMMA / "generate_gemma2_9b_ptd.sh", "--prompt", "Hello", "--output", replies,
        CHECKPOINT=tuned, TOKENIZER_PATH=model, MAX_NEW_TOKENS=4, **layout)  # fmt: skip
    (reply,) = map(json.loads, replies.read_text().splitlines())
    assert reply["prompt"] == "Hello" and 1 <= reply["tokens"] <= 4
    run(GEMMA / "ckpt_convert_gemma2_mcore2hf.sh", CHECKPOINT=tuned, HF_SAVE_DIR=tmp_path / "hf")
    old = load_file(model / "model.safetensors")
    new = load_file(tmp_path / "hf" / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(old[name].shape == new[name].shape for name in old)
    assert any(not torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(("family", "tp"), [("gemma2", 2), ("smollm2", 1)])
def test_tune_adapters_and_chat(run, model, prepared, tmp_path, family, tp):
    """Both launchers on the one checkpoint: the architecture is read from it."""
    data, mcore = prepared
    tuned, layout = tmp_path / "ckpt", {"TP": tp, "PP": 1, "PRECISION": "fp32"}
    (launcher,) = (ROOT / "examples/mcore" / family).glob("tune_*_lora_ptd.sh")
    done = run(launcher, DATA_PATH=data, CKPT_LOAD_DIR=mcore, CKPT_SAVE_DIR=tuned,
               TOKENIZER_MODEL=model, SEQ_LENGTH=128, GBS=4, TRAIN_ITERS=2, LORA_R=4,
               **layout, LOG_DIR=tmp_path / "logs")  # fmt: skip
    assert "trained parameters" in done.stdout and "iteration 2/2" in done.stdout
    (weights,) = (tuned / "iter_0000002").glob("model-r00000*.safetensors")
    assert all(".adapter.lora_" in name for name in load_file(weights))
    if family != "gemma2":
        return
    done = run(GEMMA / "chat_gemma2_9b_ptd.sh", stdin="Hello\nquit\n", CHECKPOINT=tuned,
               TOKENIZER_PATH=model, MAX_NEW_TOKENS=4, **layout)  # fmt: skip
    assert "MindSpeed-LLM:" in done.stdout
    run(GEMMA / "ckpt_convert_gemma2_mcore2hf.sh", CHECKPOINT=tuned, HF_SAVE_DIR=tmp_path / "hf")
    old, new = load_file(model / "model.safetensors"), load_file(tmp_path / "hf/model.safetensors")
    changed = {name.split(".")[-2] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    run(GEMMA / "ckpt_convert_gemma2_mcore2hf.sh", "--save-lora-to-hf", CHECKPOINT=tuned,
        HF_SAVE_DIR=tmp_path / "peft")  # fmt: skip
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_at_a_launcher_is_one_at_the_run(model, prepared, tmp_path, processes):
    data, mcore = prepared
    env = os.environ | {
        "DEVICE": "cpu", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TP": "1",
        "DATA_PATH": str(data), "CKPT_LOAD_DIR": str(mcore), "CKPT_SAVE_DIR": str(tmp_path / "out"),
        "TOKENIZER_MODEL": str(model), "SEQ_LENGTH": "128", "GBS": "2", "TRAIN_ITERS": "100000",
        "NPROC": str(processes), "LOG_DIR": str(tmp_path / "logs"),
    }  # fmt: skip
    log = tmp_path / "logs/tune_gemma2_9b_full_ptd.log"
    command = ["bash", GEMMA / "tune_gemma2_9b_full_ptd.sh", "--variable-seq-lengths"]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          cwd=tmp_path) as shell:  # fmt: skip
        try:
            end = time.monotonic() + 240
            while not (log.exists() and "iteration 2/100000" in log.read_text()):
                assert shell.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
                time.sleep(0.05)
            shell.send_signal(signal.SIGUSR1)
            assert shell.wait(120) == 128 + signal.SIGUSR1, log.read_text()[-2000:]
        finally:
            shell.kill()
    saved = (tmp_path / "out/latest_checkpointed_iteration.txt").read_text().strip()
    end = time.monotonic() + 20  # what copies the output ends after the run
    while f"iteration {saved}: SIGUSR1; the run leaves" not in log.read_text():
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.05)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_run_fails_its_launcher_behind_tee(run, model, tmp_path, processes):
    done = run(GEMMA / "tune_gemma2_9b_full_ptd.sh", check=False, CKPT_LOAD_DIR=tmp_path / "none",
               CKPT_SAVE_DIR=tmp_path / "ckpt", DATA_PATH=tmp_path / "no/data", TP=1, GBS=2,
               TOKENIZER_MODEL=model, NPROC=processes)  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "error: " in said and "Traceback" not in said
    assert not (tmp_path / "ckpt").exists()


def test_settings_that_are_wrong_are_named(run, model):
    done = run(GEMMA / "chat_gemma2_9b_ptd.sh", check=False, PRECISION="fp8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: PRECISION is 'fp8'; expected bf16 or fp32\n"
    done = run(GEMMA / "ckpt_convert_gemma2_hf2mcore.sh", "--no-such-flag", check=False,
               HF_DIR=model)  # fmt: skip
    assert done.returncode == 2 and "--no-such-flag" in done.stderr


def test_canns_environment_is_read_for_an_npu_only(run, tmp_path):
    script = tmp_path / "set_env.sh"
    script.write_text('echo "CANN $UNSET_THERE" >&2\n')  # reads a variable that is not set
    common = ROOT / "examples/mcore/common.sh"
    npu = run(common, DEVICE="npu", ASCEND_SET_ENV=script)
    assert npu.stderr == "CANN \n"
    assert run(common, DEVICE="cpu", ASCEND_SET_ENV=script).stderr == ""
    assert "no " in run(common, DEVICE="npu", ASCEND_SET_ENV=tmp_path / "none").stderr


SMOL = {
    "data_convert_smollm2_instruction.sh", "ckpt_convert_smollm2_hf2mcore.sh",
    "ckpt_convert_smollm2_mcore2hf.sh", "tune_smollm2_135m_full_ptd.sh",
    "tune_smollm2_135m_lora_ptd.sh",
    "chat_smollm2_135m_ptd.sh", "generate_smollm2_135m_ptd.sh",
}  # fmt: skip


def test_smollm2s_launchers_differ_in_settings_only(run):
    """The commands are those of Gemma 2, which run above; so every flag is a known one."""
    assert {path.name for path in (ROOT / "examples/mcore/smollm2").glob("*.sh")} == SMOL
    for path in (ROOT / "examples/mcore/smollm2").glob("*.sh"):
        twin = GEMMA / path.name.replace("smollm2_135m", "gemma2_9b").replace("smollm2", "gemma2")
        flags, known = (
            {word for word in text.read_text().split() if word.startswith("--")}
            for text in (path, twin)
        )
        assert flags <= known, path
