"""Tests of mindspeed_llm.data.plain_text."""

from __future__ import annotations

import pickle

import pytest

from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.plain_text import PlainTextRows, PlainTextSource
from mindspeed_llm.data.render import IGNORE
from mindspeed_llm.data.report import OVER_LENGTH
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import ConfigError


def maker(tokenizer, **changes):
    options = {"append_eod": False, "seq_length": None, "split": False, **changes}
    return PlainTextRows(PlainTextSource("text"), tokenizer, **options)


def test_every_token_is_a_target_but_the_first(tokenizer):
    texts = ["Hello, how are you?", "é\U0001f600\r\n x", "<end_of_turn> stays text"]
    for text, made in zip(texts, maker(tokenizer).make(texts), strict=True):
        (row,) = made.pieces
        assert tokenizer.decode(row.ids) == text
        assert row.labels == [IGNORE, *row.ids[1:]]
        assert not set(row.ids) & tokenizer.special_ids


def test_the_tokenizers_own_beginning_and_one_eos(tmp_path, make_tokenizer_dir):
    import json

    directory = make_tokenizer_dir(tmp_path / "bos")
    spec = json.loads((directory / "tokenizer.json").read_text())
    bos = next(t["id"] for t in spec["added_tokens"] if t["content"] == "<bos>")
    single = [{"SpecialToken": {"id": "<bos>", "type_id": 0}},
              {"Sequence": {"id": "A", "type_id": 0}}]  # fmt: skip
    spec["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": single,
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}},
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(directory)
    (made,) = maker(tokenizer, append_eod=True).make(["Hello"])
    (row,) = made.pieces
    assert row.ids[0] == bos and row.ids[-1] == tokenizer.eos_id and bos not in row.ids[1:]
    assert row.ids == [*tokenizer.hf("Hello").input_ids, tokenizer.eos_id]
    assert row.labels == [IGNORE, *row.ids[1:]]


def test_eos_is_not_put_twice(tokenizer):
    rows = maker(tokenizer, append_eod=True)
    assert rows._row([5, tokenizer.eos_id]).pieces[0].ids == [5, tokenizer.eos_id]
    assert rows._row([5]).pieces[0].ids == [5, tokenizer.eos_id]


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 20, 21, 22])
def test_long_texts_are_cut_or_left_out(tokenizer, length):
    ids = list(range(20, 20 + length))
    cut = maker(tokenizer, seq_length=10, split=True)._row(ids)
    left = maker(tokenizer, seq_length=10)._row(ids)
    if length == 1:
        assert isinstance(cut, RowError) and cut.kind == "no target"
        return
    joined = [i for row in cut.pieces for i in row.ids]
    assert joined == ids[: len(joined)] and len(joined) + cut.tokens == length and cut.tokens < 2
    assert all(2 <= len(row.ids) <= 10 and row.labels[0] == IGNORE for row in cut.pieces)
    if length > 10:
        assert isinstance(left, RowError) and left.kind == OVER_LENGTH
    else:
        assert [row.ids for row in left.pieces] == [ids]


def test_it_travels_to_another_process(tokenizer):
    rows = pickle.loads(pickle.dumps(maker(tokenizer, append_eod=True)))
    assert rows.make(["Hi"]) == maker(tokenizer, append_eod=True).make(["Hi"])


def test_the_column_and_what_is_no_text(tokenizer):
    source = PlainTextSource("content")
    assert source.columns == source.required == ("content",)
    assert source.read({"content": " a \n"}) == " a \n"
    for value in (None, "", " \n", 5, ["a"], "\ud800"):
        with pytest.raises(RowError):
            source.read({"content": value})


def test_fingerprint_and_eos_that_is_missing(tokenizer, tmp_path, make_tokenizer_dir):
    plain, ended = maker(tokenizer), maker(tokenizer, append_eod=True)
    assert plain.fingerprint() != ended.fingerprint() and plain.template == "plain-text"
    without = load_tokenizer(make_tokenizer_dir(tmp_path / "t", eos=None))
    with pytest.raises(ConfigError, match="no eos token"):
        maker(without, append_eod=True)
