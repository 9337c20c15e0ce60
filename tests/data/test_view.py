"""Tests of mindspeed_llm.data.view: what a prepared row looks like, and counts over all rows."""

from __future__ import annotations

import numpy as np
import pytest

from mindspeed_llm.data import view
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.manifest import DatasetFiles
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.view import PreparedRows, printable, readable, view_row
from mindspeed_llm.errors import ConfigError, DataError


def test_a_row_is_cut_where_its_treatment_changes(renderer_of, tokenizer):
    renderer = renderer_of("gemma")
    ids, labels = renderer.render(Conversation.of("Hi", "Hello.", "Well?", "Yes, I do."))
    row = view_row(0, ids, labels, tokenizer)
    runs = list(row.runs())
    assert [kind for kind, *_ in runs] == ["context", "trained"] * 2 + ["context"]
    assert [start for _, start, _ in runs] == [0, *(stop for *_, stop in runs[:-1])]
    assert runs[-1][2] == len(ids)
    texts = ["".join(row.tokens[start:stop]) for _, start, stop in runs]
    assert texts[0] == "<bos><start_of_turn>user\\nHi<end_of_turn>\\n<start_of_turn>model\\n"
    assert texts[1] == "Hello.<end_of_turn>" and texts[3] == "Yes, I do.<end_of_turn>"
    assert row.supervised == len(labels) - labels.count(-100)
    assert row.positions.tolist() == list(range(len(ids))) and set(row.segments) == {1}


def test_a_label_of_another_token_stands_alone(tokenizer):
    end, eos = tokenizer.token_id("<end_of_turn>"), tokenizer.eos_id
    row = view_row(0, [300, end, end, 301], [300, eos, eos, -100], tokenizer)
    assert list(row.runs()) == [("trained", 0, 1), ("other", 1, 2), ("other", 2, 3),
                                ("context", 3, 4)]  # fmt: skip
    assert row.trained_as == {1: "<eos>", 2: "<eos>"}
    assert view_row(0, [300, end], [300, eos], None).trained_as == {1: str(eos)}


def test_packed_rows_show_segments_and_their_positions():
    segments = np.array([1, 1, 1, 0, 2, 2, 0, 0])
    labels = [-100, 8, 9, -100, -100, 6, -100, -100]
    row = view_row(0, [7, 8, 9, 0, 5, 6, 0, 0], labels, None, segments, multiple=4)
    assert row.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    kinds = ["context", "trained", "padding"] * 2
    assert list(row.runs()) == list(zip(kinds, [0, 1, 3, 4, 5, 6], [1, 3, 4, 5, 6, 8], strict=True))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 你好 é", "plain text, 你好 é"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31m\x07\x00\x9b", "\\x1b[31m\\x07\\x00\\x9b"),
        ("\u202e\u2066\u200b\ufeff\u2028", "\\u202e\\u2066\\u200b\\ufeff\\u2028"),
        ("\\x1b", "\\\\x1b"),
        ("\U000e0041\ue000", "\\U000e0041\\ue000"),
    ],
)
def test_nothing_a_terminal_could_obey_is_left(text, shown):
    assert printable(text) == shown and shown.isprintable()


def test_every_token_is_readable(tokenizer):
    shown = [readable(tokenizer, index) for index in range(tokenizer.vocab_size)]
    assert all(text and text.isprintable() for text in shown)
    assert "\\x1b" in shown and "\ufffd" not in "".join(shown)
    assert readable(tokenizer, tokenizer.token_id("<bos>")) == "<bos>"


@pytest.fixture(params=[None, 64], ids=["rows", "packed"])
def prefix(request, tmp_path, tiny_sft_data, tiny_tokenizer_dir):
    return tiny_sft_data(tmp_path / "set", tiny_tokenizer_dir, capacity=request.param, multiple=4,
                         rows=40)  # fmt: skip


def test_rows_are_those_that_training_reads(prefix):
    rows, oracle = PreparedRows(prefix), SFTDataset(prefix, tokenizer_sha256=None)
    assert len(rows) == len(oracle)
    for number in range(len(rows)):
        row = rows.row(number, None)
        assert row.ids.tolist() == oracle[number]["input_ids"].tolist()
        assert row.labels.tolist() == oracle[number]["labels"].tolist()
        if oracle.packing is not None:
            assert row.segments.tolist() == oracle[number]["segment_ids"].tolist()


@pytest.mark.parametrize("scanned", [1, 150, 1 << 22])
def test_counts_are_those_of_the_rows(prefix, monkeypatch, scanned):
    monkeypatch.setattr(view, "_SCANNED", scanned)
    rows = PreparedRows(prefix)
    lengths, answers = [], []
    for number in range(len(rows)):
        row = rows.row(number, None)
        for segment in range(1, row.segments.max() + 1):
            inside = row.segments == segment
            lengths.append(int(inside.sum()))
            opened = [kind for kind, start, _ in row.runs() if inside[start]]
            answers.append(opened.count("trained"))
    counts = rows.counts()
    assert counts.lengths.tolist() == lengths and counts.answers.tolist() == answers
    assert len(lengths) == 40 and set(answers) == {0, 1}


def test_answers_are_counted_per_conversation(tmp_path):
    supervised = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1, 0], dtype=bool)
    one = np.ones(10, dtype=int)
    begins = np.zeros(10, dtype=bool)
    begins[[0, 5]] = True  # a trained stretch goes over the border of two rows
    found = view._count(supervised, one, begins)
    assert found.lengths.tolist() == [5, 5] and found.answers.tolist() == [2, 2]


def test_the_summary_is_the_manifests(prefix):
    rows = PreparedRows(prefix)
    facts = rows.summary()
    assert facts["rows"] == len(rows)
    assert facts["tokens"] == rows.counts().lengths.sum()
    total = sum(rows.row(n, None).supervised for n in range(len(rows)))
    assert facts["supervised tokens"] == total
    assert facts["supervised share"] == pytest.approx(total / facts["tokens"])
    if rows.manifest.packing is not None:
        filled = facts["tokens"] / (64 * len(rows))
        assert facts["packing efficiency"] == pytest.approx(filled)


def test_what_does_not_fit_is_an_error(prefix, tmp_path, make_tokenizer_dir):
    from mindspeed_llm.data.tokenizer import load_tokenizer

    rows = PreparedRows(prefix)
    with pytest.raises(ConfigError, match=rf"--rows {len(rows)}: .* rows 0 to {len(rows) - 1}"):
        rows.row(len(rows), None)
    other = load_tokenizer(make_tokenizer_dir(tmp_path / "other", markers=("<eos>",), bos=None))
    with pytest.raises(DataError, match="--flag has the vocabulary hash .* its ids mean"):
        rows.check_tokenizer(other, "--flag")
    DatasetFiles(prefix).manifest.unlink()
    with pytest.raises(DataError, match="Preparing it did not finish"):
        PreparedRows(prefix)
