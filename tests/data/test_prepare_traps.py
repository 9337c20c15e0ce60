"""The traps of multi-turn data pipelines, each driven through the whole of preparing.

A test's id names its trap. What a module already shows by itself is tested there and not again:
the exact ids and labels of each template, headers and ends included (test_render, test_verify,
test_mindspeed_templates), answers that begin with a line end (test_render), text of users that
looks like markers or placeholders (test_render, test_chat_template), shapes of histories and of
messages (test_sources, test_message_lists, test_roles, test_prepare_hostile), truncation by whole
turns when preparing and when training (test_conversation_rows, test_fit), capacity, alignment and
layout of packs (test_packing), bytes of the six files, prefixes, empty results and dead runs
(test_writer, test_prepare), order, splits, epochs and blends (test_order, test_blend), stale caches
(test_cache, test_fit). That packed loss is unpacked loss is in tests/distributed.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.collate import collate
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.fit import Fit, fitted
from mindspeed_llm.data.manifest import DatasetFiles
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.packing import positions
from mindspeed_llm.data.prepare import prepare
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import DataError, UserError

OPENAI = "OpenAIInstructionHandler"


def talk(*texts, **marks):
    return {"messages": [
        {"role": "assistant" if i % 2 else "user", "content": text,
         **({"loss": marks[f"m{i}"]} if f"m{i}" in marks else {})}
        for i, text in enumerate(texts)]}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory, make_tokenizer_dir, every_marker):
    return make_tokenizer_dir(tmp_path_factory.mktemp("traps") / "t", markers=every_marker)


@pytest.fixture
def run(tmp_path, tokenizer_dir):
    def make(rows, template="chatml", name="set", **settings):
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"handler_name": OPENAI, "tokenizer_name_or_path": tokenizer_dir, **settings}
        config = PreprocessConfig(input=(str(source),), output_prefix=tmp_path / name,
                                  prompt_type=template, **options)  # fmt: skip
        report = prepare(config)
        return SFTDataset(config.output_prefix, tokenizer_sha256=None), report

    return make


@pytest.fixture(scope="module")
def renderer(tokenizer_dir):
    return lambda name: Renderer(load_tokenizer(tokenizer_dir), find_template(name))


def lists(row):
    return [row[key].tolist() for key in ("input_ids", "labels")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_every_answer_is_trained_or_the_template_warns(run, renderer, name, caplog):
    """A model whose end-of-turn token is never a target talks on for ever, at a healthy loss."""
    data, _ = run([talk("A?", "a.", "B?", "b.")], name)
    end = renderer(name).end_id
    trained = [label for row in data for label in row["labels"].tolist() if label != IGNORE]
    if end is None:
        assert "never learns to stop" in caplog.text
    else:
        expanded = len(data)  # thinking templates write earlier answers once more, untrained
        assert trained.count(end) == 2 and trained[-1] == end and expanded in (1, 2)


@pytest.mark.parametrize("compat", [None, "mindspeed"])
@pytest.mark.parametrize("name", ["gemma", "glm4", "baichuan2"])
@pytest.mark.parametrize("policy", ["drop", "oldest-turns", "newest-turns"])
def test_training_at_a_smaller_length_never_writes_minus_100_into_ids(
    run, tmp_path, tokenizer_dir, name, compat, policy
):
    """MindSpeed-LLM does so for long rows of these templates."""
    data, _ = run([talk("A?", "a.", "B?", "b."), talk("A?", "a.")], name, template_compat=compat)
    longest, shortest = int(data.lengths.max()), int(data.lengths.min())
    fit = Fit(seq_length=longest - 1, truncation=policy)
    prefix = fitted(data.files.prefix, tmp_path, fit, lambda: load_tokenizer(tokenizer_dir))
    short = SFTDataset(prefix, tokenizer_sha256=None, max_length=longest - 1)
    assert len(short) == (1 if policy == "drop" else 2) and short.lengths.max() == shortest
    for row in short:
        ids, labels = lists(row)
        assert min(ids) >= 0
        eos = data.manifest.eos_id
        assert all(label in ((IGNORE, i, eos) if compat else (IGNORE, i))
                   for i, label in zip(ids, labels, strict=True))  # fmt: skip


def test_end_of_turn_tokens_inside_a_packed_conversation_do_not_begin_a_new_one(run):
    """With chatml the end of a turn is often eos: cut there, an answer cannot see its question."""
    rows = [talk("A?", "a.", "B?", "b."), talk("C?", "c.")]
    whole, _ = run(rows)
    length = int(whole.lengths.sum()) + 3
    data, _ = run(rows, name="packed", pack=True, seq_length=length)
    (row,) = data
    first, second = whole.lengths.tolist()
    assert row["cu_seqlens"].tolist() == [0, first, first + second, length]
    at = positions(row["cu_seqlens"].numpy())
    assert at.tolist() == [*range(first), *range(second), 0, 1, 2]


@pytest.mark.parametrize("multiple", [1, 8])
def test_no_first_token_of_a_packed_conversation_is_predicted_even_when_inputs_are_trained(
    run, multiple
):
    rows = [talk(f"{n}?" * n, "a.") for n in range(1, 9)]
    data, _ = run(rows, "empty", pack=True, seq_length=64, pad_to_multiple_of=multiple,
                  train_on_inputs=True)  # fmt: skip
    assert sum(int(row["segment_ids"].max()) for row in data) == 8
    for row in data:
        labels, segments = row["labels"].numpy(), row["segment_ids"].numpy()
        begins = np.flatnonzero(np.diff(segments, prepend=0) * (segments > 0))
        assert (labels[begins] == IGNORE).all() and (labels[segments == 0] == IGNORE).all()
        others = np.setdiff1d(np.flatnonzero(segments), begins)
        assert (labels[others] == row["input_ids"].numpy()[others]).all()


@pytest.mark.parametrize("pack", [False, True])
def test_a_real_eos_is_trained_where_padding_has_the_same_id(
    run, tmp_path, make_tokenizer_dir, every_marker, pack
):
    folder = make_tokenizer_dir(tmp_path / "t2", markers=every_marker)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    data, _ = run([talk("A?", "a.")], "llama2", tokenizer_name_or_path=folder,
                  **({"pack": True, "seq_length": 64} if pack else {}))  # fmt: skip
    manifest = data.manifest
    assert manifest.pad_id == manifest.eos_id
    batch = collate([data[0]], pad_id=manifest.pad_id, seq_length=64)
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert ids[-1] == manifest.pad_id and labels.count(manifest.eos_id) == 1
    assert labels.index(manifest.eos_id) == ids.index(manifest.eos_id)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", ["gemma", "chatml", "llama3"])
def test_a_row_of_exactly_the_length_is_kept_and_ends_the_search_for_a_pack(run, name, pack):
    """MindSpeed-LLM packs such a row for ever."""
    rows = [talk("A?", "a.", "B?", "b."), talk("C?", "c.")]
    longest = int(run(rows, name)[0].lengths.max())
    data, report = run(rows, name, "exact", pack=pack, seq_length=longest)
    assert report.tally.kept == 2 and len(data) == 2
    data, report = run(rows, name, "less", pack=pack, seq_length=longest - 1)
    assert dict(report.tally.buckets) == {"kept": 1, "over-length": 1} and len(data) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_histories_of_some_rows_are_empty_null_or_absent(tmp_path, tokenizer_dir, renderer, name):
    rows = [
        {"q": "A?", "a": "a.", "h": []}, {"q": "A?", "a": "a.", "h": None},
        {"q": "B?", "a": "b.", "h": [["A?", "a."]]}, {"q": "A?", "a": "a."},
    ]  # fmt: skip
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    prepare(PreprocessConfig(
        input=(str(path),), tokenizer_name_or_path=tokenizer_dir, output_prefix=tmp_path / "set",
        prompt_type="gemma3", map_keys={"prompt": "q", "response": "a", "history": "h"},
    ))  # fmt: skip
    one = renderer("gemma3").render(Conversation.of("A?", "a."))
    two = renderer("gemma3").render(Conversation.of("A?", "a.", "B?", "b."))
    found = [lists(row) for row in SFTDataset(tmp_path / "set", tokenizer_sha256=None)]
    assert found == [[*map(list, row)] for row in (one, one, two, one)]


def test_an_unusable_row_is_never_replaced_by_an_empty_conversation(run):
    """MindSpeed-LLM trains on an empty answer in its place, which teaches to stop at once."""
    rows = [talk("A?", "a."), talk("A?"), talk("A?", ""), {"messages": []}, talk("A?", None)]
    data, report = run(rows, on_bad_row="skip")
    assert len(data) == 1 and report.tally.rows == 5 and report.tally.bad == 4
    with pytest.raises(UserError, match="4 of 5 rows cannot be used"):
        run(rows, name="other")
    assert not DatasetFiles(data.files.prefix.parent / "other").manifest.exists()


def test_a_row_whose_answers_are_all_masked_is_left_out_and_says_why(run):
    rows = [talk("A?", "a."), talk("A?", "a.", "B?", "b.", m1=False, m3=False)]
    data, report = run(rows, on_bad_row="skip")
    assert len(data) == 1 and dict(report.tally.buckets) == {"kept": 1, "no target": 1}
    assert "training target" in report.listed[0].reason


def test_an_explicitly_empty_system_text_is_not_the_default_one(run, renderer):
    rows = [{"messages": [{"role": "system", "content": ""}, *talk("A?", "a.")["messages"]]},
            talk("A?", "a.")]  # fmt: skip
    data, _ = run(rows, "qwen")
    texts = [renderer("qwen").tokenizer.decode(row["input_ids"].tolist()) for row in data]
    assert "helpful assistant" not in texts[0] and "helpful assistant" in texts[1]


def test_answers_of_the_history_are_trained_and_no_user_text_ever_is(run, renderer):
    data, _ = run([talk(*(f"{'answer' if i % 2 else 'question'} {i}" for i in range(12)))])
    (row,) = data
    said = renderer("chatml").tokenizer.decode([i for i in row["labels"].tolist() if i != IGNORE])
    assert "question" not in said
    assert [f"answer {i}" in said for i in range(1, 12, 2)] == [True] * 6


def test_one_bos_in_each_conversation_and_none_in_the_middle(run, renderer):
    for name in ("gemma", "llama3", "deepseek3", "intern2"):
        data, _ = run([talk("A?", "a.", "B?", "b.")], name, name)
        row = data[len(data) - 1]
        bos = renderer(name).tokenizer.bos_id
        assert row["input_ids"].tolist().count(bos) == 1 and row["input_ids"][0] == bos


def test_other_tokenizers_and_other_programs_files_are_refused(run, tmp_path):
    data, _ = run([talk("A?", "a.")])
    with pytest.raises(DataError, match="another tokenizer"):
        SFTDataset(data.files.prefix, tokenizer_sha256="0")
    data.files.manifest.unlink()
    with pytest.raises(DataError, match="did not finish, or another program made it"):
        SFTDataset(data.files.prefix, tokenizer_sha256=None)
