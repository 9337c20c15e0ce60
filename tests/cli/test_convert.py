"""`convert_ckpt.py` as the guide calls it: flags in, directories out, one error for a mistake."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.directory import find_checkpoint
from mindspeed_llm.cli import convert
from mindspeed_llm.cli.main import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gemma2(tmp_path, tiny_hf_model, tiny_tokenizer_dir):
    directory = tiny_hf_model("gemma2", tmp_path / "hf", vocab_size=480)
    shutil.copytree(tiny_tokenizer_dir, directory, dirs_exist_ok=True)
    return directory


def to_mg(source, target, *more):
    return run(convert.main, ["--load-model-type", "hf", "--save-model-type", "mg", "--load-dir",
                              str(source), "--save-dir", str(target), *more])  # fmt: skip


def to_hf(source, target, *more):
    return run(convert.main, ["--load-model-type", "mg", "--save-model-type", "hf", "--load-dir",
                              str(source), "--save-dir", str(target), *more])  # fmt: skip


def test_the_guides_command_in_a_process_of_its_own(tmp_path, gemma2, capfd):
    command = [sys.executable, str(ROOT / "convert_ckpt.py"), "--use-mcore-models",
               "--model-type", "GPT", "--load-model-type", "hf", "--save-model-type", "mg",
               "--model-type-hf", "gemma2", "--target-tensor-parallel-size", "2",
               "--target-pipeline-parallel-size", "1", "--load-dir", f"{gemma2}/",
               "--save-dir", "model_weights/gemma2-mcore/",
               "--tokenizer-model", f"{gemma2}/tokenizer.json"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "loads at any other layout" in done.stdout and "46" not in done.stderr
    checkpoint = find_checkpoint(tmp_path / "model_weights" / "gemma2-mcore")
    assert checkpoint.iteration is None
    assert (checkpoint.hf_dir / "tokenizer.json").read_bytes() == (
        gemma2 / "tokenizer.json"
    ).read_bytes()
    assert to_hf(tmp_path / "model_weights" / "gemma2-mcore", tmp_path / "back") == 0
    assert "the same model: " in capfd.readouterr().out  # transformers computes the same logits
    before, after = (load_file(d / "model.safetensors") for d in (gemma2, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert to_mg(gemma2, tmp_path / "model_weights" / "gemma2-mcore") == 2
    error = capfd.readouterr().err
    assert error.count("error:") == 1 and "--overwrite" in error and "Traceback" not in error


@pytest.mark.parametrize(("flags", "words"), [
    (["--model-type-hf", "llama2"], ["--model-type-hf llama2", "gemma2 model"]),
    (["--model-type-hf", "qwen9"], ["qwen9", "known in all"]),
    (["--spec", "mindspeed_llm.tasks.models.spec.gemma_spec", "layer_spec"], ["--spec gemma"]),
    (["--add-qkv-bias"], ["--add-qkv-bias contradicts", "config.json"]),
    (["--target-tensor-parallel-size", "4"], ["--target-tensor-parallel-size 4 does not"]),
    (["--target-tensor-parallel-size", "0"], ["--target-tensor-parallel-size is 0"]),
    (["--target-pipeline-parallel-size", "3"], ["--target-pipeline-parallel-size 3 does"]),
    (["--load-checkpoint-loosely"], ["--load-checkpoint-loosely"]),
])  # fmt: skip
def test_a_mistake_is_one_error_and_nothing_is_written(tmp_path, gemma2, capsys, flags, words):
    assert to_mg(gemma2, tmp_path / "mcore", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and all(word in error for word in words), error
    assert not (tmp_path / "mcore").exists()


@pytest.mark.parametrize("flags", [
    ["--model-type-hf", "gemma2", "--post-norm"],
    ["--spec", "mindspeed_llm.tasks.models.spec.gemma2_spec", "layer_spec"], [],
])  # fmt: skip
def test_true_claims_are_accepted(tmp_path, gemma2, flags):
    assert to_mg(gemma2, tmp_path / "mcore", *flags) == 0
    assert to_hf(tmp_path / "mcore", tmp_path / "back", "--no-verify", *flags) == 0


@pytest.mark.parametrize("name", ["llama", "llama2", "llama3", "smollm2"])
def test_names_of_the_llama_family(tmp_path, tiny_hf_model, name):
    source = tiny_hf_model("llama", tmp_path / "hf")
    assert to_mg(source, tmp_path / "mcore", "--model-type-hf", name) == 0


@pytest.mark.parametrize(("made", "words"), [
    ({}, "no such file"),
    ({"config.json": "{"}, "not JSON"),
    ({"config.json": '{"model_type": "t5"}'}, "known are"),
])  # fmt: skip
def test_source_that_is_no_model(tmp_path, capsys, made, words):
    (tmp_path / "hf").mkdir()
    for name, text in made.items():
        (tmp_path / "hf" / name).write_text(text)
    assert to_mg(tmp_path / "hf", tmp_path / "mcore") == 2
    assert words in capsys.readouterr().err
    assert to_hf(tmp_path / "hf", tmp_path / "back") == 2
    assert not (tmp_path / "mcore").exists() and not (tmp_path / "back").exists()


def test_dtype_and_shard_size(tmp_path, gemma2):
    assert to_mg(gemma2, tmp_path / "mcore", "--params-dtype", "bf16") == 0
    assert to_hf(tmp_path / "mcore", tmp_path / "back", "--params-dtype", "fp32",
                 "--max-shard-gb", "0.0001", "--no-verify") == 0  # fmt: skip
    files = list((tmp_path / "back").glob("model-*.safetensors"))
    assert len(files) > 2
    tensors = {n: t for f in files for n, t in load_file(f).items()}
    source = load_file(gemma2 / "model.safetensors")
    assert all(torch.equal(t, source[n].bfloat16().float()) for n, t in tensors.items())


def test_result_below_the_original_model(tmp_path, gemma2, capsys):
    assert to_mg(gemma2, tmp_path / "mcore") == 0
    assert to_hf(tmp_path / "mcore", gemma2, "--no-verify") == 0
    assert str(gemma2 / "mg2hg") in capsys.readouterr().out


def test_the_tokenizer_of_another_model(tmp_path, tiny_chat_dir, make_tokenizer_dir, capsys):
    other = make_tokenizer_dir(tmp_path / "other", markers=("<pad>", "<eos>", "<bos>", "<x>"))
    assert to_mg(tiny_chat_dir, tmp_path / "mcore", "--tokenizer-model", str(other)) == 2
    words = "is not the tokenizer of the model at --load-dir"
    assert words in capsys.readouterr().err and not (tmp_path / "mcore").exists()
    own = str(tiny_chat_dir / "tokenizer.json")
    assert to_mg(tiny_chat_dir, tmp_path / "mcore", "--tokenizer-model", own) == 0
    assert to_hf(tmp_path / "mcore", tmp_path / "back", "--tokenizer-model", str(other)) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "back").exists()


def to_blend(start, tuned, target, *more):
    return run(convert.main, ["--load-model-type", "mg", "--save-model-type", "mg", "--load-dir",
                              str(tuned), "--save-dir", str(target), "--blend-with", str(start),
                              *more])  # fmt: skip


def test_a_checkpoint_between_two_others(tmp_path, tiny_hf_model):
    """Three quarters of the way, from a checkpoint or from Hugging Face weights."""
    start = tiny_hf_model("llama", tmp_path / "start", seed=1)
    end = tiny_hf_model("llama", tmp_path / "end", seed=2)
    assert to_mg(end, tmp_path / "tuned") == 0 and to_mg(start, tmp_path / "base") == 0
    before, after = (load_file(d / "model.safetensors") for d in (start, end))
    for name, first in (("of_hf", start), ("of_mg", tmp_path / "base")):
        blended = tmp_path / name
        assert to_blend(first, tmp_path / "tuned", blended, "--blend-share", "0.75") == 0
        assert to_hf(blended, tmp_path / f"{name}_hf", "--no-verify") == 0
        found = load_file(tmp_path / f"{name}_hf" / "model.safetensors")
        assert found.keys() == after.keys()
        for key, tensor in found.items():
            assert torch.equal(tensor, torch.lerp(before[key], after[key], 0.75)), key


@pytest.mark.parametrize(("flags", "words"), [
    ([], ["--blend-with and --blend-share need each other"]),
    (["--blend-share", "1.5"], ["--blend-share is 1.5", "less than 1"]),
    (["--blend-share", "0.5", "--save-model-type", "hf"], ["--save-model-type mg"]),
    (["--blend-share", "0.5"], ["gemma2 model of another shape", "llama"]),
])  # fmt: skip
def test_what_cannot_be_blended(tmp_path, gemma2, tiny_chat_dir, capsys, flags, words):
    assert to_mg(tiny_chat_dir, tmp_path / "tuned") == 0
    capsys.readouterr()
    assert to_blend(gemma2, tmp_path / "tuned", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and all(word in error for word in words), error
    assert not (tmp_path / "out").exists()
