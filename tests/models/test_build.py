"""models.build: whole models against transformers on the same weights, at every layout."""

import os
from pathlib import Path

import pytest
import torch
import transformers

from mindspeed_llm.models.registry import FAMILIES

RANKS = Path(__file__).with_name("parity_ranks.py").read_text(encoding="utf-8")
CASES = {  # case -> family, changes of its tiny model; each fits TP 2 and PP 2
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma": ("gemma", {}),
    "mistral": ("mistral", {}),
    "phi3": ("phi3", {}),
    "phi3 short": ("phi3", {"original_max_position_embeddings": 64}),
    "phi3 plain": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3 biases": ("qwen3", {"attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe normed": ("qwen3_moe", {"norm_topk_prob": True, "tie_word_embeddings": True}),
    "qwen3_moe mixed": (
        "qwen3_moe",
        {
            "mlp_only_layers": [1],
            "num_experts_per_tok": 1,
            "use_sliding_window": True,
            "sliding_window": 8,
        },
    ),
    "qwen3_moe every second": (
        "qwen3_moe",
        {
            "decoder_sparse_step": 2,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "attention_bias": True,
        },
    ),
    "mixtral": ("mixtral", {}),
    "gemma2": ("gemma2", {}),
    "gemma2 untied": ("gemma2", {"tie_word_embeddings": False}),
    "gemma3": ("gemma3", {}),
    "gemma3 capped": ("gemma3", {"final_logit_softcapping": 3.0}),
}
ALONE = {  # in one process: one key/value head cannot be cut, and rotation does not depend on it
    "llama MQA": ("llama", {"num_key_value_heads": 1}),
    "gemma2 MQA": ("gemma2", {"num_key_value_heads": 1}),
    "gemma3 MQA": ("gemma3", {"num_key_value_heads": 1}),
    "qwen3 yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 8,
            }
        },
    ),
}
FOUR_GROUPS = {  # every family, with key/value heads for four ranks
    f"{family} of four groups": (family, {"num_key_value_heads": 4}) for family in sorted(FAMILIES)
}
LAYOUTS = {  # TP, PP, sequence parallel
    "one process": (1, 1, False),
    "TP 2": (2, 1, False),
    "TP 2 SP": (2, 1, True),
    "PP 2": (1, 2, False),
    "TP 2 PP 2": (2, 2, True),
}
EXPERTS = {  # processes, TP, PP, sequence parallel, EP, tensor-parallel ranks of an expert
    "TP 2 EP 2 of whole experts": (2, 2, 1, True, 2, 1),
}
MORE_EXPERTS = {
    "EP 2": (2, 1, 1, False, 2, None),
    "EP 4": (4, 1, 1, False, 4, None),
    "EP 2, two replicas": (4, 1, 1, False, 2, None),
    "EP 2 PP 2": (4, 1, 2, False, 2, None),
    "TP 2 EP 2": (4, 2, 1, True, 2, None),
    "TP 2 PP 2 EP 2 of whole experts": (4, 2, 2, True, 2, 1),
    "TP 2 EP 4 of whole experts": (4, 2, 1, True, 4, 1),
}
FOUR = {"TP 4": (4, 1, True), "PP 4": (1, 4, False)}
ROWS = [
    (layout, case)
    for layout in LAYOUTS
    for case in CASES
    if layout not in ("TP 2", "TP 2 PP 2")
    or case in ("llama", "gemma2", "gemma3", "phi3")
    or (layout == "TP 2 PP 2" and case in ("qwen3_moe mixed", "mixtral"))
]  # the rest: TP with SP, PP alone
ROWS += [("one process", case) for case in ALONE]


@pytest.fixture(scope="module")
def directories(tiny_hf_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {
        case: str(tiny_hf_model(family, folder / case.replace(" ", "_"), **changes))
        for case, (family, changes) in (CASES | ALONE | FOUR_GROUPS).items()
    }


@pytest.fixture(scope="module")
def results():
    """Layout -> what its ranks answered; one start of processes serves all cases of a layout."""
    return {}


def test_every_family_is_compared_at_every_kind_of_layout():
    for layout in ("one process", "TP 2 SP", "PP 2"):
        compared = {CASES[case][0] for where, case in ROWS if where == layout and case in CASES}
        assert compared == set(FAMILIES), f"{layout}: write a row of CASES for the new family"


@pytest.mark.parametrize(
    ("layout", "case"),
    [pytest.param(*row, marks=[pytest.mark.slow] if row[0] == "TP 2 PP 2" else []) for row in ROWS],
)
def test_equals_transformers(layout, case, results, run_ranks, directories):
    tp, pp, sp = LAYOUTS[layout]
    if layout not in results:
        wanted = [name for where, name in ROWS if where == layout]
        models = {name: directories[name] for name in wanted}
        results[layout] = run_ranks(tp * pp, RANKS, models, tp, pp, sp, timeout=300)
    compare([answer[case] for answer in results[layout]], tp, pp, sp)


@pytest.mark.parametrize(
    "layout", [*EXPERTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_EXPERTS)]
)
def test_experts_on_several_ranks_equal_transformers(layout, run_ranks, directories):
    size, tp, pp, sp, ep, etp = (EXPERTS | MORE_EXPERTS)[layout]
    sparse = [case for case, (family, _) in CASES.items() if family in ("qwen3_moe", "mixtral")]
    models = {case: directories[case] for case in sparse}
    answers = run_ranks(size, RANKS, models, tp, pp, sp, False, ep, etp, timeout=300)
    for case in sparse:
        compare([answer[case] for answer in answers], tp, pp, sp)


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOUR)
def test_four_ranks_equal_transformers(layout, run_ranks, directories):
    tp, pp, sp = FOUR[layout]
    models = {case: directories[case] for case in FOUR_GROUPS}
    answers = run_ranks(tp * pp, RANKS, models, tp, pp, sp, timeout=300)
    for case in FOUR_GROUPS:
        compare([answer[case] for answer in answers], tp, pp, sp)


def test_bf16_is_as_near_to_fp32_as_transformers_own(run_ranks, directories):
    cases = {family: case for case, (family, _) in CASES.items()}  # one of each family
    models = {case: directories[case] for case in cases.values()}
    (answer,) = run_ranks(1, RANKS, models, 1, 1, False, True)
    assert len(answer) == len(FAMILIES)
    for case, distance in answer.items():
        assert 0 < distance["ours"] < 1.1 * distance["theirs"], (case, distance)


def compare(ranks, tp, pp, sp):
    """Assert that no rank of one case is further from transformers than is allowed."""
    assert max(rank["gradient"] for rank in ranks) < 1e-4, [rank["worst"] for rank in ranks]
    assert all((rank["split"] > 0) == (tp > 1) for rank in ranks)
    last = [rank for rank in ranks if "logits" in rank]
    assert len(last) * pp == len(ranks)
    assert max(rank["logits"] for rank in last) < 1e-4
    assert max(rank["logprobs"] for rank in last) < 1e-4
    assert max(rank["loss"] for rank in last) < 1e-4
    if pp == 1 and not sp:
        assert max(rank["cached"] for rank in ranks) < 1e-4


ACTING = [  # what the tiny models are said to exercise, and the model without it
    ("gemma2", "attn_logit_softcapping", 1e6),
    ("gemma2", "final_logit_softcapping", 1e6),
    ("gemma2", "sliding_window", 64),
    ("gemma3", "sliding_window", 64),
    ("mistral", "sliding_window", 64),
    ("qwen2", "use_sliding_window", False),
    ("qwen3", "use_sliding_window", False),
    ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}),
    ("phi3", "rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}),
    ("phi3", "original_max_position_embeddings", 64),
    ("gemma3", "rope_parameters", {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("gemma3", "rope_parameters", {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000000.0}}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "key", "without"), ACTING)
def test_the_tiny_models_go_beyond_caps_windows_and_plain_rope(
    family, key, without, tiny_hf_model, tmp_path
):
    """transformers alone: at the lengths compared above, each peculiarity changes the logits."""
    ids = torch.randint(3, 131, (2, 32), generator=torch.Generator().manual_seed(5))
    logits = []
    for changes in ({}, {key: without}):
        directory = tiny_hf_model(family, tmp_path / str(len(logits)), **changes)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager"
        )
        with torch.no_grad():
            logits.append(model(ids).logits)
    assert (logits[0] - logits[1]).abs().max() > 0.3


LOCAL = os.environ.get("SMOLLM2_135M_INSTRUCT")


@pytest.mark.skipif(not LOCAL, reason="SMOLLM2_135M_INSTRUCT names no model directory")
def test_smollm2_equals_transformers(run_ranks):
    (answer,) = run_ranks(1, RANKS, {"smollm2": LOCAL}, 1, 1, False, timeout=300)
    answer = answer["smollm2"]
    assert answer["logits"] < 1e-4
    assert answer["cached"] < 1e-4
    assert answer["loss"] < 1e-4
    assert answer["gradient"] < 1e-4, answer["worst"]
