"""Sampling keeps what it should, draws in proportion, and repeats by seed."""

import dataclasses

import pytest
import torch

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.inference.sampling import (
    GREEDY,
    Sampler,
    Sampling,
    logprobs_of,
    of_prompts,
    penalized,
    probabilities,
)

LOGITS = torch.tensor([[0.1, 2.0, -1.0, 1.5, -torch.inf]])


def test_greedy_takes_the_most_probable() -> None:
    assert Sampler(GREEDY, 2)(torch.stack([LOGITS[0], -LOGITS[0, [1, 0, 2, 3, 3]]])).tolist() == [
        1,
        2,
    ]


def test_temperature_is_softmax_of_scaled_logits() -> None:
    found = probabilities(LOGITS, Sampling(temperature=0.7))
    torch.testing.assert_close(found, torch.softmax(LOGITS / 0.7, -1))


@pytest.mark.parametrize("k,kept", [(1, {1}), (2, {1, 3}), (3, {0, 1, 3}), (9, {0, 1, 2, 3})])
def test_top_k_keeps_the_k_best(k: int, kept: set[int]) -> None:
    found = probabilities(LOGITS, Sampling(temperature=1.0, top_k=k))[0]
    assert set(found.nonzero().flatten().tolist()) == kept
    assert found.sum().item() == pytest.approx(1)


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    chances = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    for p, kept in ((0.49, 1), (0.51, 2), (0.81, 3), (0.96, 4), (1.0, 4)):
        found = probabilities(chances.log(), Sampling(temperature=1.0, top_p=p))
        assert int((found > 0).sum()) == kept
        want = chances[0, :kept] / chances[0, :kept].sum()
        torch.testing.assert_close(found[0, :kept], want)


def _of_transformers(ids: torch.Tensor, logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What `generate` of transformers draws from: its processors, in the order it applies them."""
    import transformers as hf

    scores = hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, logits.clone())
    scores = hf.TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = hf.TopKLogitsWarper(sampling.top_k)(ids, scores)
    scores = hf.TopPLogitsWarper(sampling.top_p)(ids, scores)
    return hf.MinPLogitsWarper(sampling.min_p)(ids, scores).softmax(-1)


@pytest.mark.parametrize(
    "given",
    [{"top_k": 12}, {"top_p": 0.7}, {"min_p": 0.2}, {"repetition_penalty": 1.3},
     {"repetition_penalty": 0.6}, {"top_k": 12, "top_p": 0.7}, {"top_p": 0.8, "min_p": 0.1},
     {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2}, {"min_p": 1.0},
     {"top_k": 1}, {"top_p": 1e-6}],
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_distributions_are_those_of_transformers(given: dict, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, **given)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 60, generator=generator)
    ids = torch.randint(0, 60, (8, 15), generator=generator)
    seen = torch.zeros(8, 60, dtype=torch.bool).scatter(1, ids, True)
    found = probabilities(penalized(logits, seen, sampling.repetition_penalty), sampling)
    torch.testing.assert_close(found, _of_transformers(ids, logits, sampling))


def test_greedy_with_penalty_follows_the_prompt_and_what_was_drawn() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    sampler = Sampler(Sampling(repetition_penalty=1.8), 3, prompts)
    processor = RepetitionPenaltyLogitsProcessor(1.8)
    rows = [list(prompt) for prompt in prompts]
    for _ in range(6):
        drawn = sampler(logits).tolist()
        for row, ids in enumerate(rows):
            scores = processor(torch.tensor([ids]), logits[row : row + 1].clone())
            assert drawn[row] == int(scores.argmax())
            ids.append(drawn[row])
    assert len(set(rows[1])) > 3, "the penalty changed nothing"


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(3))
    found = logprobs_of(logits, 7, 4)
    want = logits.log_softmax(-1)
    assert found.chosen == pytest.approx(float(want[7]))
    best = want.argsort(descending=True)[:4].tolist()
    assert [index for index, _ in found.top] == best
    assert [value for _, value in found.top] == pytest.approx(want[best].tolist())
    assert logprobs_of(logits, 7, 0).top == []


def test_what_greedy_leaves_idle() -> None:
    assert Sampling(top_k=3, min_p=0.1, repetition_penalty=1.1).idle == ("top_k", "min_p")
    assert Sampling(temperature=0.5, top_k=3).idle == () == GREEDY.idle


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3), 2000)
    drawn = sampler(torch.tensor([0.6, 0.3, 0.1]).log().expand(2000, 3))
    # Every row has the same seed, so the first draw is the same; later ones differ by the row's
    # own generator only if it is used: draw from one row 2000 times instead.
    assert len(set(drawn.tolist())) == 1
    one = Sampler(Sampling(temperature=1.0, seed=3))
    counts = torch.bincount(
        torch.cat([one(torch.tensor([[0.6, 0.3, 0.1]]).log()) for _ in range(2000)]), minlength=3
    )
    torch.testing.assert_close(counts / 2000, torch.tensor([0.6, 0.3, 0.1]), atol=0.04, rtol=0)


def test_seed_decides_and_rows_are_independent() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    warm = Sampling(temperature=1.3, seed=5)

    def draws(sampler: Sampler, rows: slice, steps: int) -> list[list[int]]:
        return [sampler(logits[rows]).tolist() for _ in range(steps)]

    alone = draws(Sampler(warm), slice(1, 2), 8)
    together = draws(Sampler(warm, 3), slice(0, 3), 8)
    assert [row[0] for row in alone] == [row[1] for row in together]
    assert draws(Sampler(warm), slice(1, 2), 8) == alone
    other = draws(Sampler(Sampling(temperature=1.3, seed=6)), slice(1, 2), 8)
    assert other != alone


def test_a_row_that_is_not_drawn_keeps_its_generator() -> None:
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    warm = Sampling(temperature=1.3, seed=5)
    plain, skipping = Sampler(warm, 2), Sampler(warm, 2)
    first = plain(logits).tolist()
    assert skipping(logits, rows=[0]).tolist() == [first[0], 0]
    assert skipping(logits, rows=[1]).tolist() == [0, first[1]]


def test_every_prompt_has_a_seed_that_depends_on_nothing_else() -> None:
    warm = Sampling(temperature=1.0, seed=5)
    one, two, again = of_prompts(warm, [[1, 2], [3], [1, 2]])
    assert len({5, one.seed, two.seed, again.seed}) == 4, "asked twice, drawn twice"
    assert of_prompts(warm, [[3], [9], [1, 2]]) == [two, *of_prompts(warm, [[9]]), one]
    assert of_prompts(dataclasses.replace(warm, seed=6), [[3]]) != [two]
    assert dataclasses.replace(one, seed=5) == warm
    assert of_prompts(GREEDY, [[1], [2]]) == [GREEDY, GREEDY]


@pytest.mark.parametrize(
    "wrong,flag",
    [({"temperature": -1.0}, "--temperature"), ({"temperature": float("nan")}, "--temperature"),
     ({"top_k": -1}, "--top-k"), ({"top_p": 0.0}, "--top-p"), ({"top_p": 1.5}, "--top-p"),
     ({"min_p": 1.1}, "--min-p"), ({"repetition_penalty": 0.0}, "--repetition-penalty"),
     ({"seed": -1}, "--seed"), ({"logprobs": 21}, "--logprobs")],
)  # fmt: skip
def test_wrong_settings_name_their_flag(wrong: dict, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        Sampling(**wrong)
