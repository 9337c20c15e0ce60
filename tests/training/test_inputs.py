"""Every mismatch of checkpoint, tokenizer, data and flags is one clear error, before training."""

import shutil
from pathlib import Path

import pytest

from mindspeed_llm.checkpoint.convert import hf_to_mcore
from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.errors import CheckpointError, ConfigError, DataError
from mindspeed_llm.training.inputs import read_inputs


def read(*command):
    settings, architecture = read_settings([str(part) for part in command])
    return read_inputs(settings, architecture, check_tokenizer=True)


def test_what_belongs_together_is_read(flags):
    inputs = read(*flags, "--num-layers", 4, "--prompt-type", "gemma", "--attn-logit-softcapping",
                  "5.0", "--eval-iters", 1, "--split", "70,20,10")  # fmt: skip
    assert inputs.model.family == "gemma2" and not inputs.continues
    rows = inputs.rows
    assert (len(rows.train), len(rows.validation), len(rows.test)) == (17, 5, 2)
    assert read(*flags).rows.validation is None


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (["--load", "/nowhere/at/all"], CheckpointError, "--load /nowhere/at/all: no such"),
        (["--data-path", "/nowhere/rows"], DataError, "/nowhere/rows"),
        (["--num-layers", "42"], ConfigError, "--num-layers is 42, the model has 4"),
        (["--tensor-model-parallel-size", "3"], ConfigError, "--tensor-model-parallel-size 3"),
        (["--prompt-type", "chatml"], ConfigError, "--prompt-type is chatml, .* with gemma"),
        (["--seq-length", "256"], ConfigError, "--seq-length 256 is beyond .* 128 positions"),
        (["--seq-length", "5"], DataError, "longer than --seq-length 5"),
        (["--eval-iters", "1"], ConfigError, "--eval-iters 1 needs validation rows"),
        (["--split", "0,1,0"], ConfigError, "no row for training"),
        (["--split", "a,b"], ConfigError, "--split"),
        (["--override-opt-param-scheduler"], ConfigError, "is no interrupted run"),
        (["--moe-token-dispatcher-type", "alltoall"], ConfigError, "has no experts; drop it"),
    ],
)
def test_a_mismatch_names_flag_and_mend(flags, changes, kind, words):
    with pytest.raises(kind, match=words):
        read(*flags, *changes)


def test_the_tokenizer_must_be_the_models(flags, tmp_path, make_tokenizer_dir):
    other = make_tokenizer_dir(tmp_path / "other", markers=("<eos>", "<bos>", "<pad>"))
    with pytest.raises(ConfigError, match="is not the tokenizer of the model at --load"):
        read(*flags, "--tokenizer-name-or-path", other)


def test_data_of_another_tokenizer(flags, tmp_path, make_tokenizer_dir, tiny_sft_data):
    other = make_tokenizer_dir(tmp_path / "other", markers=("<eos>", "<bos>", "<pad>"))
    prefix = tiny_sft_data(tmp_path / "rows", other)
    with pytest.raises(DataError, match="another tokenizer"):
        read(*flags, "--data-path", prefix)


def test_a_run_of_megatron_lm_is_not_continued(flags, tmp_path, material):
    """Its weights are read, its optimizer is not: nothing goes on as if it were."""
    theirs = hf_to_mcore(Path(material["gemma2"]), tmp_path / "ck", ckpt_format="torch_dist").path
    theirs.rename(tmp_path / "ck" / "iter_0000007")
    (tmp_path / "ck" / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(ConfigError, match="--finetune --trust-pickle starts from its weights"):
        read(*flags, "--load", tmp_path / "ck", "--trust-pickle")
    assert not read(*flags, "--load", tmp_path / "ck", "--trust-pickle", "--finetune").continues


def test_a_tokenizer_larger_than_the_model(flags, tmp_path, tiny_hf_model, tiny_tokenizer_dir):
    small = tiny_hf_model("llama", tmp_path / "small")  # 131 tokens
    with pytest.raises(DataError, match=r"tokenizer of \d\d\d tokens, the model has 131"):
        read(*flags, "--load", small)


def test_a_checkpoint_without_tokenizer_needs_one(flags, tmp_path, material, tiny_tokenizer_dir):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{material['gemma2']}/{name}", bare / name)
    with pytest.raises(ConfigError, match="holds no tokenizer; give --tokenizer-name-or-path"):
        read(*flags, "--load", bare)
    assert read(*flags, "--load", bare, "--tokenizer-name-or-path", tiny_tokenizer_dir).rows
