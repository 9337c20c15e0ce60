"""Tables of one evaluation and of two."""

from mindspeed_llm.evaluation.report import rows, share, side_by_side, single


def result(load: str, exact: float, loss: float) -> dict:
    shares = {"dialogues": 4, "exact": exact, "value": 0.75, "stopped": 1.0}
    return {
        "load": load,
        "recall": {"all": shares, "mean": shares, "family": {"fact": shares},
                   "distance": {"2": shares}},
        "input": {"loss": loss, "perplexity": 7.5, "tokens": 90, "replies": 6, "dialogues": 3,
                  "ends": 0.5, "early": 0.0,
                  "turns": [{"turn": 1, "loss": loss, "perplexity": 7.5, "replies": 3}]},
        "history_gain": {"true": 1.0, "shuffled": 3.0, "none": 2.0, "gain_over_none": 1.0,
                         "gain_over_shuffled": 2.0, "helped": 1.0, "dialogues": 3},
    }  # fmt: skip


def test_before_stands_beside_after() -> None:
    found = rows(result("base", 0.25, 2.5), result("tuned", 1.0, 2.25))
    assert ("exact, fact", "4", "25.0 %", "100.0 %") in found
    assert ("exact, mean", "4", "25.0 %", "100.0 %") in found
    assert ("exact, 2 turns back", "4", "25.0 %", "100.0 %") in found
    assert ("loss on conversations", "90 tok", "2.500", "2.250") in found
    assert ("stops where the reply ends", "6", "50.0 %", "50.0 %") in found
    assert ("history gain over shuffled, nats", "3", "2.000", "2.000") in found


def test_only_what_both_have_is_compared() -> None:
    whole, bare = result("base", 0.25, 2.5), {"load": "tuned"}
    assert rows(whole, bare) == []
    assert len(side_by_side(whole, bare)) == 1


def test_columns_stand_under_each_other_and_long_paths_keep_their_end() -> None:
    lines = side_by_side(result("x" * 90 + "base", 0.25, 2.5), result("tuned", 1.0, 2.25))
    assert len({len(line) for line in lines}) == 1 and "base" in lines[0]
    assert len(lines[0]) < 120


def test_what_was_found_of_one_model() -> None:
    text = "\n".join(single(result("base", 0.25, 2.5)))
    assert "perplexity 7.50 (90 tokens, 3 dialogues)" in text and "turn 1: loss 2.5000" in text
    assert "1.0000 after its history, 3.0000 after another one's, 2.0000 after none" in text
    assert single({"load": "x", "history_gain": None}) == []
    assert share(None) == "-" and share(0.125) == "12.5 %"
