"""posttrain_gpt.py as a user runs it: the guide's flags, one-line errors, a kill and a resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mindspeed_llm.cli.train import main, read_settings
from mindspeed_llm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
LAST = 24
# The flags of MindSpeed-LLM's Gemma2 tuning script that keep their meaning here.
GEMMA2 = """
    --use-mcore-models --tensor-model-parallel-size 8 --pipeline-model-parallel-size 1
    --sequence-parallel --num-layers 42 --hidden-size 3584 --ffn-hidden-size 14336
    --num-attention-heads 16 --group-query-attention --num-query-groups 8 --kv-channels 256
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path ./model_from_hf/gemma2_hf/
    --seq-length 8192 --max-position-embeddings 8192 --micro-batch-size 1 --global-batch-size 128
    --make-vocab-size-divisible-by 1 --lr 1.25e-6 --train-iters 2000 --lr-decay-style cosine
    --disable-bias-linear --attention-dropout 0.0 --hidden-dropout 0.0
    --position-embedding-type rope --normalization RMSNorm --add-rmsnorm-offset --geglu
    --input-embeds-norm --use-rotary-position-embeddings --attn-logit-softcapping 50.0
    --output-logit-softcapping 30.0 --post-norm --query-pre-attn-scalar 256
    --interleave-sliding-window 4096 --vocab-size 256000 --attention-softmax-in-fp32
    --min-lr 1.25e-7 --weight-decay 1e-1 --lr-warmup-fraction 0.01 --clip-grad 1.0
    --adam-beta1 0.9 --adam-beta2 0.95 --no-gradient-accumulation-fusion
    --no-masked-softmax-fusion --no-load-optim --no-load-rng --use-distributed-optimizer --bf16
    --finetune --stage sft --is-instruction-dataset --prompt-type gemma --variable-seq-lengths
    --data-path ./finetune_dataset/alpaca --split 100,0,0 --log-interval 1 --save-interval 2000
    --eval-interval 2000 --eval-iters 0 --distributed-backend nccl
    --load ./model_weights/gemma2-9b-mcore/ --save ./ckpt/
""".split()


def test_the_guides_flags_are_understood():
    settings, architecture = read_settings(GEMMA2)
    assert settings.parallel.tensor_model_parallel_size == 8 and settings.parallel.sequence_parallel
    assert settings.train.bf16 and settings.train.global_batch_size == 128
    assert settings.optimizer.lr == 1.25e-6 and settings.optimizer.adam_beta2 == 0.95
    assert settings.checkpoint.finetune and not settings.checkpoint.load_optim
    assert settings.data.prefixes == ("./finetune_dataset/alpaca",)
    assert architecture.attn_logit_softcapping == 50.0 and architecture.post_norm


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fp16"], "--fp16 cannot be honoured here: .*--bf16"),
        (["--use-flash-attn"], "--use-flash-attn cannot be honoured here"),
        (["--spec", "mindspeed_llm.tasks.models.spec.gemma2_spec", "layer_spec"], "--spec cannot"),
        (["--initial-loss-scale", "4096"], "--initial-loss-scale cannot"),
        (["--init-method-std", "0.01"], "--init-method-std cannot"),
        (["--tokenizer-not-use-fast"], "--tokenizer-not-use-fast cannot"),
        (["--lr-warmup-fractoin", "0.1"], "did you mean --lr-warmup-fraction"),
        (["--stage", "dpo"], "--stage"),
    ],
)
def test_what_cannot_be_honoured_is_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        read_settings([*GEMMA2, *flags])


def test_a_backend_of_another_device_is_refused(monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    with pytest.raises(ConfigError, match="nccl does not fit the device cpu"):
        main(GEMMA2)


@pytest.fixture
def command(tmp_path, tiny_chat_model, tiny_sft_data, tiny_tokenizer_dir):
    """A shell command of LAST iterations that saves every fourth."""
    prefix = tiny_sft_data(tmp_path / "rows", tiny_tokenizer_dir)
    model = tiny_chat_model("llama")

    def make(save, *more):
        return [
            sys.executable, "-W", "ignore", str(ROOT / "posttrain_gpt.py"), "--stage", "sft",
            "--is-instruction-dataset", "--load", str(model), "--data-path", str(prefix),
            "--seq-length", "32", "--train-iters", str(LAST), "--global-batch-size", "4",
            "--lr", "1e-3", "--lr-decay-style", "cosine", "--variable-seq-lengths",
            "--save", str(save), "--save-interval", "4", *more,
        ]  # fmt: skip

    return make


ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "DEVICE": "cpu", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def finish(command, cwd):
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def test_killed_between_two_saves_and_continued(command, tmp_path, told, bits):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = finish(command(whole), tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"iteration {LAST}/{LAST} | loss" in done.stderr and "loss curve: " in done.stderr
    assert Path(whole, "logs", "loss.png").read_bytes().startswith(b"\x89PNG")
    killed = subprocess.Popen(
        command(cut), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = cut / "logs" / "train.jsonl"
    deadline = time.monotonic() + 200
    while killed.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= 6:
            break
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    saved = int(Path(cut, "latest_checkpointed_iteration.txt").read_text())
    assert 4 <= saved < LAST
    done = finish([*command(cut), "--load", str(cut)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"iteration {saved + 1}/{LAST}" in done.stderr
    assert f"iteration {saved}/{LAST}" not in done.stderr
    assert told(cut) == told(whole)
    assert bits(cut, LAST) == bits(whole, LAST)


def test_a_tuned_model_is_exported_as_transformers_opens_it(command, tmp_path):
    target = tmp_path / "tuned_hf"
    short = [*command(tmp_path / "ckpt"), "--train-iters", "2", "--save-hf", str(target)]
    done = finish(short, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the same model: " in done.stdout and f"written to {target}" in done.stderr
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    generation = transformers.GenerationConfig.from_pretrained(target)
    # the model's own, and the token that ends an answer in the template the rows were made with
    ends = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert ends in generation.eos_token_id and len(set(generation.eos_token_id)) > 1
    # the tiny tokenizer has no template: the one of the rows was written for it
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False,
                                         add_generation_prompt=True)  # fmt: skip
    assert said == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    model = transformers.AutoModelForCausalLM.from_pretrained(target)
    assert model.generate(torch.tensor([[2, 5, 7]]), max_new_tokens=3).shape[1] > 3
    assert not list(tmp_path.glob("*.tmp-*"))
    done = finish(short, tmp_path)  # found before anything is trained
    assert done.returncode == 2 and f"--save-hf {target}: is there already" in done.stderr
    assert "iteration 1/2" not in done.stderr
    inside = [*command(tmp_path / "other"), "--save-hf", str(tmp_path / "other" / "hf")]
    done = finish(inside, tmp_path)
    assert done.returncode == 2 and "choose a directory outside it" in done.stderr
    assert "iteration 1/" not in done.stderr


def test_a_checkpoint_that_is_tuned_on_is_exported_too(command, tmp_path):
    first, target = tmp_path / "first", tmp_path / "hf"
    assert finish([*command(first), "--train-iters", "2"], tmp_path).returncode == 0
    more = ["--load", str(first), "--save-hf", str(target)]
    done = finish(
        [*command(tmp_path / "more"), "--train-iters", "2", "--finetune", *more], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "the same model: " in done.stdout and (target / "model.safetensors").is_file()
    done = finish([*command(first), "--load", str(first), "--train-iters", "2"], tmp_path)
    assert done.returncode == 0 and "iteration 2 of 2 is reached already" in done.stderr


def test_a_missing_checkpoint_is_one_line_and_exit_code_2(command, tmp_path):
    done = finish([*command(tmp_path / "out"), "--load", "/nowhere/at/all"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "--load /nowhere/at/all" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
