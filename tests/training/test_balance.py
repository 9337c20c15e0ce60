"""Training with experts, without and with the balancing loss, equals transformers' on the same
weights, with experts in one process and spread over two or four."""

import pytest

COEFFICIENT = 0.5  # large: a third of the gradient


@pytest.fixture(scope="module")
def model_dir(tiny_chat_model):
    return str(tiny_chat_model("qwen3_moe"))


@pytest.fixture
def command(flags, model_dir):
    """Rows one by one: each micro-batch's balance is then that of a row."""
    return [*flags, "--load", model_dir, "--micro-batch-size", "1"]


@pytest.fixture(scope="module")
def oracle(transformers_steps, model_dir):
    return {c: transformers_steps(model_dir, c) for c in (0.0, COEFFICIENT)}


VARIABLE = "--variable-seq-lengths"
FULL = ["--recompute-granularity", "full", "--recompute-method", "uniform",
        "--recompute-num-layers", "1"]  # fmt: skip
EP2 = ["--expert-model-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
WHOLE = ["--expert-tensor-parallel-size", "1"]
CP2 = ["--context-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
UNEVEN = [*PP2, "--num-layer-list", "1,3"]
VPP = [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]
SHARDED = "--use-distributed-optimizer"
ALONE = [[], [VARIABLE, *FULL]]
PAIRS = [[VARIABLE, *EP2, SHARDED], [*TP2, *EP2, *WHOLE]]
MORE_PAIRS = [[VARIABLE, *EP2], [*TP2, *EP2, *WHOLE, SHARDED], PP2, TP2, CP2,
              UNEVEN, VPP]  # fmt: skip
FOURS = [[VARIABLE, *EP2, SHARDED], [*PP2, *EP2], [VARIABLE, *TP2, *EP2],
         [*TP2, *EP2, *WHOLE, *PP2], [*CP2, *EP2], [*VPP, *EP2], [*UNEVEN, *CP2]]  # fmt: skip


@pytest.mark.parametrize(
    ("world_size", "variants"),
    [
        (1, ALONE),
        (2, PAIRS),
        pytest.param(2, MORE_PAIRS, marks=pytest.mark.slow),
        pytest.param(4, FOURS, marks=pytest.mark.slow),
    ],
)
def test_every_layout_equals_transformers(
    run_ranks, losses_of, same_steps, command, oracle, world_size, variants
):
    balanced = ["--moe-aux-loss-coeff", str(COEFFICIENT)]
    both = [*variants, *([*variant, *balanced] for variant in variants)]
    for rank in run_ranks(world_size, losses_of, command, both, timeout=600):
        for number, steps in enumerate(rank):
            same_steps(steps, oracle[0.0 if number < len(variants) else COEFFICIENT])


def test_the_balancing_loss_acts(oracle):
    plain, balanced = oracle[0.0], oracle[COEFFICIENT]
    assert abs(balanced[0][1] / plain[0][1] - 1) > 1e-2
    assert abs(balanced[2][0] / plain[2][0] - 1) > 1e-4
