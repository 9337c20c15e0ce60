"""Every flag of posttrain_gpt.py acts, is a statement, or is refused where it would do nothing."""

import dataclasses

import pytest

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.carried import ALWAYS, REFUSED
from mindspeed_llm.config.flags import flag_of
from mindspeed_llm.config.inert import TABLE, WAITING, flags_of, waiting
from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import (
    CheckpointSettings,
    ControlSettings,
    LogSettings,
    RuntimeSettings,
)
from mindspeed_llm.config.train import TrainConfig
from mindspeed_llm.config.train_data import TrainDataConfig
from mindspeed_llm.config.tuning import TuningSettings
from mindspeed_llm.errors import ConfigError

KINDS = (TrainConfig, TrainDataConfig, OptimizerSettings, CheckpointSettings, LogSettings,
         RuntimeSettings, ControlSettings, ParallelConfig, TuningSettings)  # fmt: skip
LEAST = "--load HF --data-path rows --seq-length 32 --train-iters 4 --lr 1e-3"
EVALUATES = "--eval-iters 1"
PROFILES = "--profile --log-dir logs"
# flag -> a command line on which it does nothing, and what else makes it act
IDLE = {
    "--min-lr": ("--min-lr 1e-4 --lr-decay-style constant", "--lr-decay-style cosine"),
    "--lr-decay-iters": ("--lr-decay-iters 2 --lr-decay-style constant",
                         "--lr-warmup-fraction 0.1"),
    "--lr-wsd-decay-style": ("--lr-wsd-decay-style linear",
                             "--lr-decay-style WSD --lr-wsd-decay-iters 2"),
    "--lr-wsd-decay-iters": ("--lr-wsd-decay-iters 2", "--lr-decay-style WSD"),
    "--lr-warmup-init": ("--lr-warmup-init 1e-5", "--lr-warmup-iters 1"),
    "--override-opt-param-scheduler": ("--override-opt_param-scheduler --finetune", None),
    "--pad-to-multiple-of": ("--pad-to-multiple-of 4", "--variable-seq-lengths"),
    "--variable-seq-lengths": ("--variable-seq-lengths --pack", None),
    "--full-shuffle-instruction-dataset": ("--full-shuffle-instruction-dataset --no-shuffle", None),
    "--eval-interval": ("--eval-interval 2", EVALUATES),
    "--early-stop-patience": ("--early-stop-patience 2", f"{EVALUATES} --eval-interval 1"),
    "--exit-interval": ("--exit-interval 5", "--train-iters 6"),
    "--save-best": ("--save-best --save out", EVALUATES),
    "--save-interval": ("--save-interval 2", "--save out"),
    "--keep-last": ("--keep-last 2", "--save out"),
    "--save-retain-interval": ("--save-retain-interval 2 --save out", "--save-interval 1"),
    "--save-hf": ("--save-hf out", "--save ckpt"),
    "--no-verify": ("--no-verify", "--save ckpt --save-hf out"),
    "--profile": ("--profile --profile-step-start 1", "--log-dir logs"),
    "--profile-step-start": ("--profile-step-start 1", PROFILES),
    "--profile-step-end": ("--profile-step-end 4", f"{PROFILES} --profile-step-start 1"),
    "--profile-ranks": ("--profile-ranks 0", f"{PROFILES} --profile-step-start 1"),
    "--use-pytorch-profiler": ("--use-pytorch-profiler", f"{PROFILES} --profile-step-start 1"),
    "--on-non-finite": ("--on-non-finite rollback --save out", "--save-interval 1"),
    "--moe-router-load-balancing-type": ("--moe-router-load-balancing-type aux_loss",
                                         "--moe-aux-loss-coeff 0.1"),
    "--recompute-method": ("--recompute-method uniform --recompute-num-layers 1",
                           "--recompute-granularity full"),
    "--recompute-num-layers": ("--recompute-num-layers 1 --recompute-granularity selective", None),
    "--sequence-parallel": ("--sequence-parallel", "--tensor-model-parallel-size 2"),
    "--num-layers-per-virtual-pipeline-stage": ("--num-layers-per-virtual-pipeline-stage 1",
                                                "--pipeline-model-parallel-size 2"),
    "--num-virtual-stages-per-pipeline-rank": ("--num-virtual-stages-per-pipeline-rank 2",
                                               "--pipeline-model-parallel-size 2"),
    "--num-layer-list": ("--num-layer-list 1,3", "--pipeline-model-parallel-size 2"),
    "--decoder-first-pipeline-num-layers": ("--decoder-first-pipeline-num-layers 1",
                                            "--pipeline-model-parallel-size 2"),
    "--decoder-last-pipeline-num-layers": ("--decoder-last-pipeline-num-layers 1",
                                           "--pipeline-model-parallel-size 2"),
    "--cp-comm-type": ("--cp-comm-type all_gather", "--context-parallel-size 2"),
    "--context-parallel-algo": ("--context-parallel-algo kvallgather_cp_algo",
                                "--context-parallel-size 2"),
    "--freeze": ("--freeze embedding.* --lora-r 4", None),
    "--train-only": ("--train-only embedding.* --lora-r 4", None),
}  # fmt: skip
# Refused where the device, the checkpoint, the model or the data set is known; see their tests.
LATER = {
    "--require-fused", "--distributed-backend",  # test_run
    "--moe-aux-loss-coeff", "--moe-token-dispatcher-type",  # test_train
    "--expert-model-parallel-size", "--expert-tensor-parallel-size",  # test_parallel
    "--handler-name", "--map-keys", "--data-cache-path", "--truncation",  # test_raw
    "--neat-pack", "--reset-position-ids", "--reset-attention-mask",  # test_packs
    "--padded-samples",  # here, for blends
}  # fmt: skip
# These act, or say what is so (--finetune of weights alone), on every command line.
ACT = {
    "--stage", "--train-iters", "--epochs", "--micro-batch-size", "--global-batch-size",
    "--seq-length", "--seed", "--bf16", "--recompute-granularity", "--attention-dropout",
    "--hidden-dropout", "--data-path", "--split", "--tokenizer-type", "--tokenizer-name-or-path",
    "--prompt-type", "--hf-chat-template", "--pack", "--no-shuffle", "--optimizer", "--lr",
    "--lr-decay-style", "--lr-warmup-fraction", "--lr-warmup-iters", "--weight-decay",
    "--adam-beta1", "--adam-beta2", "--adam-eps", "--clip-grad", "--use-distributed-optimizer",
    "--load", "--save", "--trust-pickle", "--finetune", "--no-load-optim", "--no-load-rng",
    "--log-interval", "--log-dir", "--device-peak-tflops", "--tensorboard-dir", "--eval-iters",
    "--exit-duration-in-mins", "--heartbeat-timeout-seconds", "--device",
    "--distributed-timeout-minutes", "--tensor-model-parallel-size",
    "--pipeline-model-parallel-size", "--context-parallel-size", "--lora-r", "--lora-alpha",
    "--lora-dropout", "--lora-target-modules", "--lora-load",
}  # fmt: skip


def known():
    for kind in KINDS:
        for field in dataclasses.fields(kind):
            yes = field.default is not True
            yield (
                flag_of(field.name)
                if yes
                else (field.metadata["negative"] or "--no-" + flag_of(field.name)[2:])
            )


def test_every_flag_is_accounted_for():
    flags = set(known())
    assert flags - set(IDLE) - LATER - ACT == set()
    assert (set(IDLE) | LATER | ACT) - flags - set(ALWAYS) == set()
    assert not (set(IDLE) & ACT) and not (LATER & ACT)
    assert {row.flag for row in TABLE} <= set(IDLE) and {row.flag for row in WAITING} <= ACT
    assert not flags & set(REFUSED) and not set(ALWAYS) & set(REFUSED)
    assert not {flag_of(field.name) for field in dataclasses.fields(ArchitectureFlags)} & flags


@pytest.mark.parametrize("flag", sorted(IDLE))
def test_a_flag_without_effect_is_refused(flag):
    idle, acts = IDLE[flag]
    with pytest.raises(ConfigError, match=flag):
        read_settings([*LEAST.split(), *idle.split()])
    if acts is not None:
        read_settings([*LEAST.split(), *idle.split(), *acts.split()])


@pytest.mark.parametrize(("line", "flag"), [
    ("--profile --log-dir logs", "--profile"),  # its iterations 11 and 12 of 4
    ("--profile --log-dir logs --profile-step-start 3", "--profile"),
    ("--early-stop-patience 2 --eval-iters 1 --eval-interval 2", "--early-stop-patience"),
    ("--early-stop-patience 1 --eval-iters 1", "--early-stop-patience"),
])  # fmt: skip
def test_what_lies_beyond_the_last_iteration_is_refused(line, flag):
    with pytest.raises(ConfigError, match=f"^{flag} has no effect"):
        read_settings([*LEAST.split(), *line.split()])
    read_settings([*LEAST.split(), "--train-iters", "3000", *line.split()])


@pytest.mark.parametrize(
    ("processes", "layout", "said"),
    [(1, "", 3), (2, "", 0), (2, "--tensor-model-parallel-size 2", 1)],
)
def test_what_acts_with_more_processes_is_said(processes, layout, said):
    line = (
        "--use-distributed-optimizer --heartbeat-timeout-seconds 9 --distributed-timeout-minutes 3"
    )
    argv = [*LEAST.split(), *line.split(), *layout.split()]
    settings, _ = read_settings(argv)
    found = waiting(settings, flags_of(argv), processes)
    assert len(found) == said and waiting(settings, [], processes) == []
    assert not said or found[0].startswith("--use-distributed-optimizer shards nothing")


@pytest.mark.parametrize(
    "line",
    ["--min-lr 0 --lr-decay-style constant", "--eval-interval 2000 --eval-iters 0",
     "--lr-warmup-init 0", "--on-non-finite rollback --load out --save out",
     "--moe-router-load-balancing-type none"],
)  # fmt: skip
def test_what_says_off_is_accepted(line):
    read_settings([*LEAST.split(), *line.split()])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--lr nan", "--lr: expected a number, found 'nan'"),
        ("--clip-grad inf", "--clip-grad: expected a number"),
        ("--lr 1e-3x", "--lr: expected a number, found '1e-3x'"),
        ("--train-iters 2.5", "--train-iters: invalid int value"),
        ("--seed 99999999999", "--seed is 99999999999"),
        ("--micro-bach-size 2", "did you mean --micro-batch-size"),
        ("--micro_batch_size 2", "did you mean --micro-batch-size"),
        ("--tensor-parallel-size 2", "did you mean --tensor-model-parallel-size"),
        ("--lr_decay_style cosine", "did you mean --lr-decay-style"),
        ("-lr 2", "did you mean --lr"),
        ("--bf16 true", "unexpected argument 'true'"),
        ("--lr-decay-style cosinus", "invalid choice: 'cosinus'"),
        ("--padded-samples --data-path 0.3 a 0.7 b", "--padded-samples"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_named(line, words):
    with pytest.raises(ConfigError, match=words):
        read_settings([*LEAST.split(), *line.split()])


def test_flags_are_read_without_their_values():
    assert flags_of(["--lr=1", "-x", "--override-opt_param-scheduler", "rows"]) == {
        "--lr", "--override-opt-param-scheduler"}  # fmt: skip
