"""Tests of mindspeed_llm.data.blend: several data sets trained as one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from fractions import Fraction

import pytest

from mindspeed_llm.data.blend import Blend, Ordering, check_alike, identity
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.packing import Packing
from mindspeed_llm.data.writer import Shard, exclusive_scratch, write_six
from mindspeed_llm.errors import DataError


@pytest.fixture
def make(tmp_path):
    """`make(name, rows, first)` -> prefix; row n has three tokens, the first is `first` + n."""

    def write(name, rows, first=100):
        files = DatasetFiles(tmp_path / name)
        with exclusive_scratch(files) as scratch:
            with Shard(scratch / "0") as shard:
                for n in range(rows):
                    shard.add([first + n, 1, 2], [-100, 1, 2])
            described = write_six(files, [shard], scratch)
        Manifest(rows=rows, tokens=3 * rows, supervised_tokens=2 * rows, longest=3,
                 tokenizer_sha256="a" * 64, vocab_size=999, eos_id=1, pad_id=0, template="gemma",
                 template_sha256="g" * 64, seq_length=None, packed=False, seed=1, settings={},
                 counts={}, inputs=[], files=described,
                 versions={}).write(files.manifest)  # fmt: skip
        return files.prefix

    return write


@pytest.fixture
def members(make):
    prefixes = [make("a", 7, 100), make("b", 20, 200), make("c", 3, 300)]
    return [SFTDataset(prefix, tokenizer_sha256=None) for prefix in prefixes]


def drawn(blend, how, samples, start=0):
    at = blend.order(how)
    return [int(blend[at(p)]["input_ids"][0]) for p in range(start, samples)]


def test_rows_are_numbered_through(members):
    blend = Blend(members)
    found = [int(blend[i]["input_ids"][0]) for i in range(len(blend))]
    assert found == [*range(100, 107), *range(200, 220), *range(300, 303)]
    assert len(blend.lengths) == len(blend) == 30


def test_one_data_set_keeps_its_order_whatever_its_weight(members):
    alone = drawn(Blend(members[:1]), Ordering(seed=4), 21)
    assert drawn(Blend(members[:1], [Fraction("0.3")]), Ordering(seed=4), 21) == alone
    assert sorted(alone[:7]) == list(range(100, 107))


def test_weights_give_shares_and_each_set_its_own_epochs(members):
    weights = [Fraction("0.2"), Fraction("0.5"), Fraction("0.3")]
    found = drawn(Blend(members, weights), Ordering(seed=4), 1000)
    for length in range(1, 1001):
        counts = Counter(token // 100 for token in found[:length])
        for kind, weight in zip((1, 2, 3), weights, strict=True):
            assert abs(counts[kind] - weight * length) < 1
    for first, size in ((100, 7), (200, 20), (300, 3)):
        own = [token for token in found if first <= token < first + 100]
        epochs = [own[i : i + size] for i in range(0, len(own) - size, size)]
        assert len(epochs) > 10
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert Blend(members, weights).passes(1000) == pytest.approx([200 / 7, 25, 100])


def test_without_weights_every_row_comes_once_an_epoch(members):
    blend = Blend(members)
    found = drawn(blend, Ordering(seed=4), 90)
    epochs = [found[i : i + 30] for i in (0, 30, 60)]
    assert all(len(set(epoch)) == 30 for epoch in epochs) and epochs[0] != epochs[1]
    assert drawn(blend, Ordering(shuffle=False), 30) == [
        *range(100, 107), *range(200, 220), *range(300, 303)]  # fmt: skip
    assert blend.passes(60) == [2, 2, 2]


@pytest.mark.parametrize("weights", [None, [Fraction(1), Fraction(2), Fraction(1, 3)]])
@pytest.mark.parametrize(
    "how",
    [Ordering(seed=4), Ordering(seed=4, samples=300), Ordering(shuffle=False)],
    ids=["epochs", "full", "file"],
)
def test_any_position_continues_the_stream(members, weights, how):
    whole = drawn(Blend(members, weights), how, 300)
    for start in (1, 29, 30, 137, 299):
        assert drawn(Blend(members, weights), how, 300, start) == whole[start:]


def test_same_seed_same_order_other_seed_another(members):
    weights = [Fraction(1)] * 3
    first = drawn(Blend(members, weights), Ordering(seed=4), 60)
    assert drawn(Blend(members, weights), Ordering(seed=4), 60) == first
    assert drawn(Blend(members, weights), Ordering(seed=5), 60) != first


def test_full_shuffle_mixes_the_epochs_of_the_run(members):
    blend = Blend(members)
    found = drawn(blend, Ordering(seed=4, samples=80), 90)  # 80 samples need 3 epochs
    assert set(Counter(found).values()) == {3}
    assert len(set(found[:30])) < 30


def test_filling_stays_in_the_split(make):
    """T17: what fills an epoch of a part are rows of that part."""
    prefix = make("rows", 20)
    for share, tokens in (((0, 0.7), range(100, 114)), ((0.7, 1), range(114, 120))):
        blend = Blend([SFTDataset(prefix, tokenizer_sha256=None, share=share)])
        assert blend.epoch(8) % 8 == 0
        found = drawn(blend, Ordering(seed=4, fill=8), 2 * blend.epoch(8))
        assert set(found) == set(tokens)
        assert set(found[: blend.epoch(8)]) == set(tokens)


def manifest(make, **changes):
    read = Manifest.read(DatasetFiles(make("x", 2)))
    return dataclasses.replace(read, **changes)


PACKING = {"rows": 1, "segments": 1, "efficiency": 1.0, "multiple": 1}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"tokenizer_sha256": "b" * 64}, "tokenizer differs: aaaaaaaaaaaa and bbbbbbbbbbbb"),
        ({}, {"template": "chatml"}, r"template differs: gemma \(gggggggggggg\) and chatml"),
        ({}, {"template_sha256": "h" * 64}, r"gemma \(hhhhhhhhhhhh\)"),
        ({}, {"packed": True, "packing": Packing(capacity=64, **PACKING)},
         "packing differs: not packed and packed rows of 64 tokens"),
        ({"packed": True, "packing": Packing(capacity=32, **PACKING)},
         {"packed": True, "packing": Packing(capacity=64, **PACKING)}, "of 32 .* of 64"),
    ],
)  # fmt: skip
def test_what_differs_is_refused_by_name(make, first, second, words):
    same = manifest(make, **first)
    with pytest.raises(DataError, match="sets/a and sets/c cannot be trained together.*" + words):
        check_alike(["sets/a", "sets/b", "sets/c"], [same, same, manifest(make, **second)])


def test_identity_follows_content_and_weights(make):
    a, again, b = make("a", 3), make("elsewhere", 3), make("b", 4)
    one, same, other = (Manifest.read(DatasetFiles(p)) for p in (a, again, b))
    assert identity([one], None) == identity([same], [Fraction(3)])
    assert identity([one], None) != identity([other], None)
    half = [Fraction(1), Fraction(1)]
    assert identity([one, other], half) == identity([same, other], [Fraction("0.5")] * 2)
    assert identity([one, other], half) != identity([one, other], [Fraction(1), Fraction(2)])
    assert identity([one, other], half) != identity([one, other], None)


def test_changed_rows_under_the_same_prefix_are_used(make):
    """T15, T17: nothing is kept about a prefix, so nothing can be stale."""
    prefix = make("a", 3)
    before = identity([Manifest.read(DatasetFiles(prefix))], None)
    assert drawn(Blend([SFTDataset(prefix, tokenizer_sha256=None)]), Ordering(seed=1), 3)
    make("a", 5, first=500)
    again = Blend([SFTDataset(prefix, tokenizer_sha256=None)])
    assert sorted(drawn(again, Ordering(seed=1), 5)) == [500, 501, 502, 503, 504]
    assert identity([Manifest.read(DatasetFiles(prefix))], None) != before
