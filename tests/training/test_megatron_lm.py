"""Tests of mindspeed_llm.training.megatron_lm; with MEGATRON_LM_PATH naming a checkout (or several,
as in PATH), its own pretrain_gpt.py is run as well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mindspeed_llm.training import megatron_lm

CHECKOUTS = [path for path in os.environ.get("MEGATRON_LM_PATH", "").split(os.pathsep) if path]
SCRIPT = """
import mindspeed_llm.megatron_adaptor
import runpy
if __name__ == "__main__":
    runpy.run_path("pretrain_gpt.py", run_name="__main__")
"""
FLAGS = """--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64
--max-position-embeddings 64 --global-batch-size 4 --train-iters 3 --lr 1e-3
--transformer-impl local --no-persist-layer-norm --no-gradient-accumulation-fusion
--no-masked-softmax-fusion --no-bias-swiglu-fusion --no-bias-gelu-fusion
--no-bias-dropout-fusion --no-rope-fusion
--distributed-backend gloo --position-embedding-type rope --normalization RMSNorm --swiglu
--disable-bias-linear --use-distributed-optimizer --log-interval 1 --eval-iters 1
--eval-interval 1000 --attention-dropout 0 --hidden-dropout 0 --num-workers 0 --split 80,10,10
--tokenizer-type PretrainedFromHF --is-instruction-dataset --prompt-type gemma""".split()


@pytest.fixture
def given(monkeypatch):
    """What megatron.training.get_args() gives."""
    args = types.SimpleNamespace(is_instruction_dataset=False)
    module = types.SimpleNamespace(get_args=lambda: args)
    monkeypatch.setitem(sys.modules, "megatron.training", module)
    return args


def test_a_script_keeps_its_data_and_step_unless_asked(given):
    seen = []

    def pretrain(train_valid_test_dataset_provider, model_provider, model_type, forward_step_func,
                 process=None, args_defaults=None):  # fmt: skip
        seen.append((train_valid_test_dataset_provider([1, 2, 3], vp_stage=0),
                     forward_step_func("rows", "model"), process, args_defaults,
                     train_valid_test_dataset_provider.is_distributed))  # fmt: skip

    def provider(numbers, vp_stage=None):
        return "data", numbers, vp_stage

    def step(data_iterator, model):
        return "step", data_iterator, model

    run = megatron_lm.with_instruction_data(pretrain)
    run(provider, None, None, step, "p", args_defaults={"a": 1})
    provider.is_distributed = True
    run(provider, None, None, forward_step_func=step)
    data, kept = ("data", [1, 2, 3], 0), ("step", "rows", "model")
    assert seen == [(data, kept, "p", {"a": 1}, False), (data, kept, None, None, True)]


def test_flags_come_after_the_scripts_own():
    import argparse

    def parse_args(extra_args_provider=None, ignore_unknown_args=False):
        parser = argparse.ArgumentParser()
        parser.add_argument("--tokenizer-type")
        return extra_args_provider(parser).parse_args(["--own", "1", "--prompt-type", "x"])

    def provider(parser):
        parser.add_argument("--own", type=int)
        return parser

    args = megatron_lm.with_flags(parse_args)(provider)
    assert (args.own, args.prompt_type, args.is_instruction_dataset) == (1, "x", False)


def test_a_mistake_is_one_line_and_no_traceback(capsys):
    import argparse

    def parse_args(extra_args_provider=None, ignore_unknown_args=False):
        parser = argparse.ArgumentParser()
        parser.add_argument("--tokenizer-type")
        return extra_args_provider(parser).parse_args(["--neat-pack"])

    with pytest.raises(SystemExit) as leaving:
        megatron_lm.with_flags(parse_args)()
    assert leaving.value.code == 2
    assert capsys.readouterr().err == (
        "error: --neat-pack has no effect without --is-instruction-dataset\n"
    )


def test_the_loss_is_divided_once():
    args = types.SimpleNamespace(is_instruction_dataset=True, instruction_lengths_vary=True,
                                 calculate_per_token_loss=False)  # fmt: skip

    def validate_args(args, defaults=None):
        args.variable_seq_lengths = False
        return args

    done = megatron_lm.with_token_loss(validate_args)(args, {})
    assert done.calculate_per_token_loss and done.variable_seq_lengths
    args.is_instruction_dataset = args.calculate_per_token_loss = False
    done = megatron_lm.with_token_loss(validate_args)(args)
    assert not done.calculate_per_token_loss and not done.variable_seq_lengths


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_tokenizer_dir, tiny_sft_data):
    folder = tmp_path_factory.mktemp("data")
    tiny_sft_data(folder / "plain", tiny_tokenizer_dir, rows=40)
    tiny_sft_data(folder / "packed", tiny_tokenizer_dir, rows=40, capacity=64)
    return folder


def _losses(checkout, tmp_path, ranks, *flags):
    """Loss and gradient norm of each of three iterations, as printed."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    here = str(Path(sys.executable).parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
         "--nproc-per-node", str(ranks), str(script), *FLAGS, *flags],
        cwd=checkout, capture_output=True, text=True, timeout=400,
        env={**os.environ, "DEVICE": "cpu", "PYTHONPATH": checkout,
             "PATH": here + os.pathsep + os.environ["PATH"], "CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = re.findall(r"lm loss: (\S+) .*?grad norm: (\S+)", done.stdout)
    assert len(found) == 3
    return [float(number) for pair in found for number in pair]


LEAVES = """
import atexit, torch.distributed as dist
atexit.register(lambda: print("at the end:", dist.is_initialized()))  # the last one called
from mindspeed_llm.training.megatron_lm import with_instruction_data
def pretrain(provider, model, kind, step):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return "trained"
print(with_instruction_data(pretrain)(None, None, None, print), dist.is_initialized())
"""


def test_gloos_groups_do_not_see_the_end_of_the_interpreter():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LEAVES], capture_output=True,
                          text=True, timeout=100)  # fmt: skip
    assert done.returncode == 0 and done.stdout == "trained True\nat the end: False\n", done


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUTS, reason="MEGATRON_LM_PATH names no checkout of Megatron-LM")
@pytest.mark.parametrize("checkout", CHECKOUTS)
def test_pretrain_gpt_trains_on_conversations(checkout, tmp_path, data, tiny_tokenizer_dir):
    common = ["--tokenizer-name-or-path", str(tiny_tokenizer_dir)]
    packed = [*common, "--data-path", str(data / "packed")]
    alone = _losses(checkout, tmp_path, 1, *packed, "--micro-batch-size", "1")
    assert alone[-2] < alone[0]
    twice = _losses(checkout, tmp_path, 2, *packed, "--micro-batch-size", "2")
    assert twice == pytest.approx(alone, rel=2e-3)  # as printed
    plain = [*common, "--data-path", str(data / "plain"), "--micro-batch-size", "1"]
    whole = _losses(checkout, tmp_path, 1, *plain)
    assert _losses(checkout, tmp_path, 1, *plain, "--variable-seq-lengths") == (
        pytest.approx(whole, rel=1e-5)
    )
    stages = ["--pipeline-model-parallel-size", "2"]
    apart = _losses(checkout, tmp_path, 2, *packed, *stages, "--micro-batch-size", "1")
    assert _losses(checkout, tmp_path, 2, *packed, *stages, "--micro-batch-size", "2") == (
        pytest.approx(apart, rel=2e-3)
    )


ARCHITECTURE = """--ffn-hidden-size 96 --group-query-attention --num-query-groups 2 --kv-channels 24
--untie-embeddings-and-output-weights --norm-epsilon 1e-6 --rotary-base 10000 --finetune
--no-load-optim --no-load-rng --ckpt-format torch_dist --auto-detect-ckpt-format
--no-shuffle""".split()


def _loss_by_transformers(directory, prefix):
    import torch
    import transformers

    from mindspeed_llm.data.dataset import SFTDataset

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    total, count = 0.0, 0
    for row in (SFTDataset(prefix, tokenizer_sha256=None)[i] for i in range(4)):
        labels = row["labels"].clone()
        labels[0] = -100
        logits = model(row["input_ids"][None]).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum").item()
        count += int((labels >= 0).sum())
    return total / count


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUTS, reason="MEGATRON_LM_PATH names no checkout of Megatron-LM")
@pytest.mark.parametrize("checkout", CHECKOUTS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_converted_checkpoint_is_loaded(checkout, ranks, tmp_path, data, tiny_tokenizer_dir,
                                          tiny_hf_model):  # fmt: skip
    if "MINOR = 12" in (Path(checkout) / "megatron/core/package_info.py").read_text():
        pytest.skip("core_r0.12 loads torch_dist with Transformer Engine only")
    hf = tiny_hf_model("llama", tmp_path / "hf", vocab_size=480, max_position_embeddings=64,
                       rope_parameters={"rope_type": "default", "rope_theta": 10000.0})  # fmt: skip
    for file in tiny_tokenizer_dir.iterdir():
        shutil.copy(file, hf)
    saved = tmp_path / "saved"
    subprocess.run(
        [sys.executable, "-m", "mindspeed_llm.cli.main", "convert", "--load-model-type", "hf",
         "--save-model-type", "mg", "--load-dir", str(hf), "--save-dir", str(saved),
         "--ckpt-format", "torch_dist"], check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    found = _losses(
        checkout, tmp_path, ranks, *ARCHITECTURE, "--load", str(saved), "--data-path",
        str(data / "plain"), "--tokenizer-name-or-path", str(tiny_tokenizer_dir),
        "--micro-batch-size", "1", "--tensor-model-parallel-size", str(ranks),
        "--make-vocab-size-divisible-by", str(480 // ranks),
    )  # fmt: skip
    expected = _loss_by_transformers(hf, data / "plain")
    assert found[0] == pytest.approx(expected, rel=1e-5)
