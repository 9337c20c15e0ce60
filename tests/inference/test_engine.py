"""Generation equals transformers' for every family and layout, cached, batched, in turns."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

RANKS = Path(__file__).with_name("engine_ranks.py").read_text(encoding="utf-8")
FAMILIES = ("llama", "gemma2", "gemma3", "mixtral")
LAYOUTS = {"one process": (1, 1), "TP 2": (2, 1), "PP 2": (1, 2)}
LIMIT = 12  # with the prompts below, past the window of 8


def _ids(length: int, seed: int) -> list[int]:
    return [random.Random(seed).randrange(3, 131) for _ in range(length)]


PROMPTS = [_ids(5, 1), _ids(17, 2), _ids(6, 3), _ids(1, 4), _ids(30, 5)]
TURNS = [_ids(7, 6), _ids(9, 7), _ids(3, 8), _ids(5, 9), _ids(2, 10)]


@pytest.fixture(scope="module")
def directories(tiny_hf_model: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("families")
    return {family: str(tiny_hf_model(family, folder / family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def oracle(directories: dict[str, str]) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {
        name: AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float32
        ).eval()
        for name, path in directories.items()
    }


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict]]:
    """Layout -> each rank's answers; one start of processes serves all families."""
    return {}


@pytest.fixture(params=LAYOUTS)
def ranks(request: pytest.FixtureRequest, results: dict, run_ranks: Callable,
          directories: dict) -> list[dict]:  # fmt: skip
    layout = request.param
    if layout not in results:
        tp, pp = LAYOUTS[layout]
        results[layout] = run_ranks(tp * pp, RANKS, directories, tp, pp, PROMPTS, TURNS, LIMIT)
    return results[layout]


def _expected(model: Any, prompt: list[int]) -> list[int]:
    """Greedy ids of transformers without a cache: every step looks at everything anew."""
    ids = list(prompt)
    for _ in range(LIMIT):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family: str, ranks: list[dict], oracle: dict) -> None:
    found = ranks[0][family]
    expected = [_expected(oracle[family], prompt) for prompt in PROMPTS]
    assert found["single"] == expected
    assert found["batch"] == expected
    assert found["after"] == expected[0]
    assert found["early"] == expected[0][:2]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_generate_of_transformers(family: str, ranks: list[dict], oracle: dict) -> None:
    """Five turns with the cache kept between them, without it, and transformers' own cache."""
    found = ranks[0][family]
    for turn, fresh in zip(found["turns"], found["fresh turns"], strict=True):
        prompt = torch.tensor([turn["prompt"]])
        expected = oracle[family].generate(  # without a mask it takes id 0 for padding
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=LIMIT,
            min_new_tokens=LIMIT, eos_token_id=None, pad_token_id=0,
        )[0, len(turn["prompt"]) :]  # fmt: skip
        assert turn["ids"] == fresh == expected.tolist()


@pytest.mark.parametrize(("size", "layout"), [
    (2, (1, 1, 2, None)),
    pytest.param(2, (2, 1, 2, 1), marks=pytest.mark.slow),
    pytest.param(4, (1, 2, 2, None), marks=pytest.mark.slow),
    pytest.param(4, (2, 1, 2, None), marks=pytest.mark.slow),
])  # fmt: skip
def test_experts_on_several_ranks_say_the_same(
    size: int, layout: tuple, run_ranks: Callable, directories: dict, oracle: dict
) -> None:
    """TP, PP, EP, tensor-parallel ranks of an expert; all ranks work on the same tokens."""
    tp, pp, ep, etp = layout
    models = {"mixtral": directories["mixtral"]}
    ranks = run_ranks(size, RANKS, models, tp, pp, PROMPTS, TURNS, LIMIT, ep, etp)
    found = ranks[0]["mixtral"]
    expected = [_expected(oracle["mixtral"], prompt) for prompt in PROMPTS]
    assert found["single"] == found["batch"] == expected
    assert [turn["ids"] for turn in found["turns"]] == found["fresh turns"]
    assert len({tuple(rank["mixtral"]["held"]) for rank in ranks}) == 1


@pytest.mark.slow
def test_a_long_conversation_in_a_window(
    tiny_hf_model: Callable, run_ranks: Callable, tmp_path: Path
) -> None:
    """Five turns of a Mistral, so long that what its window of 16 no longer sees is forgotten."""
    from transformers import AutoModelForCausalLM

    path = tiny_hf_model("mistral", tmp_path / "hf", sliding_window=16,
                         max_position_embeddings=2048)  # fmt: skip
    turns = [_ids(length, length) for length in (190, 260, 31, 340, 230)]
    ranks = RANKS.replace('torch.device("cpu"), 120)', 'torch.device("cpu"), 1500)')  # the context
    (found,) = run_ranks(1, ranks, {"mistral": str(path)}, 1, 1, PROMPTS, turns, LIMIT)
    found = found["mistral"]
    model = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    assert model.config.sliding_window == 16
    for before, turn, fresh in zip(
        [None, *found["turns"]], found["turns"], found["fresh turns"], strict=False
    ):
        assert turn["ids"] == fresh == _expected(model, turn["prompt"])
        assert before is None or turn["cached"] == len(before["prompt"]) + LIMIT - 1
    assert len(found["turns"][-1]["prompt"]) > 1000
    # Without the window other ids come: it acts.
    wide = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32, sliding_window=None
    ).eval()
    assert any(_expected(wide, turn["prompt"]) != turn["ids"] for turn in found["turns"])


@pytest.mark.parametrize("family", FAMILIES)
def test_taking_back_crops_the_cache(family: str, ranks: list[dict]) -> None:
    found = ranks[0][family]
    assert found["again"] == found["turns"][3]["ids"]
    assert found["again cached"] == len(found["turns"][3]["prompt"]) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_reuse_the_cache_and_change_nothing(
    family: str, ranks: list[dict], oracle: dict
) -> None:
    turns = ranks[0][family]["turns"]
    assert [turn["ids"] for turn in turns] == [
        _expected(oracle[family], turn["prompt"]) for turn in turns
    ]
    assert turns[0]["cached"] == 0
    for before, turn in zip(turns, turns[1:], strict=False):
        # All but the last generated id, which nothing came after.
        assert turn["cached"] == len(before["prompt"]) + LIMIT - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_tokens_repeat_by_seed_alone_and_in_a_batch(family: str, ranks: list[dict]) -> None:
    found = ranks[0][family]
    assert found["drawn"][0] == found["drawn"][1] == found["drawn_batch"]
    assert found["drawn"][0] != found["single"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_transformers(family: str, ranks: list[dict], oracle: dict) -> None:
    found, ids = ranks[0][family], list(PROMPTS[1])
    assert len(found["logprobs"]) == 3
    for (chosen, top), (chosen_there, _) in zip(
        found["logprobs"], found["logprobs in a batch"], strict=True
    ):
        with torch.no_grad():
            best = oracle[family](torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(2)
        assert [index for index, _ in top] == best.indices.tolist()
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert chosen == top[0][1] == pytest.approx(chosen_there, abs=1e-3)
        ids.append(top[0][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_repetition_penalty_is_that_of_transformers(
    family: str, ranks: list[dict], oracle: dict
) -> None:
    expected = oracle[family].generate(
        torch.tensor([PROMPTS[0]]), do_sample=False, repetition_penalty=2.5,
        max_new_tokens=LIMIT, min_new_tokens=LIMIT,
    )[0, len(PROMPTS[0]) :]  # fmt: skip
    assert ranks[0][family]["penalized"] == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_whoever_reads_the_text_can_end_one_row_of_a_batch(family: str, ranks: list[dict]) -> None:
    found = ranks[0][family]
    assert found["stops"] == ["length", "stop_string", "length", "length", "length"]
    assert found["ended"][1] == found["batch"][1][:3]
    assert [found["ended"][row] for row in (0, 2, 3, 4)] == [
        found["batch"][row] for row in (0, 2, 3, 4)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers(family: str, ranks: list[dict], oracle: dict) -> None:
    """Also of rows of several lengths at once, and where only some of a row are targets."""
    for number, (prompt, found) in enumerate(zip(PROMPTS, ranks[0][family]["scores"], strict=True)):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = oracle[family](ids).logits[0, :-1].log_softmax(-1)
        first = len(prompt) // 2 - 1 if number == len(PROMPTS) - 1 else 0
        losses = -expected.gather(-1, ids[0, 1:, None])[first:, 0]
        assert [loss for loss, _ in found] == pytest.approx(losses.tolist(), rel=1e-4, abs=1e-5)
        assert [best for _, best in found] == expected.argmax(-1)[first:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_ranks_hold_the_same_cache(family: str, ranks: list[dict]) -> None:
    assert len({tuple(rank[family]["held"]) for rank in ranks}) == 1
