"""Tests of mindspeed_llm.data.conversation_rows with rows that hypothesis invents.

A small number by default; `-m slow` runs 20,000 of each kind.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data import texts
from mindspeed_llm.data.conversation_rows import ConversationRows
from mindspeed_llm.data.inputs import find_inputs
from mindspeed_llm.data.messages import RowError
from mindspeed_llm.data.prepare import prepare
from mindspeed_llm.data.readers import ChunkReader, line_numbers, split_chunks
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.report import WRITTEN, Tally
from mindspeed_llm.data.sources import make_source
from mindspeed_llm.data.templates import QWEN_TOOLS, find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import DataError

ALPACA = "AlpacaStyleInstructionHandler"
SHAREGPT = "SharegptStyleInstructionHandler"
OPENAI = "OpenAIInstructionHandler"
MAPS = {ALPACA: {"history": "histories", "system": "persona"}, SHAREGPT: None, OPENAI: None}
FEW, MANY = 150, 20_000

text = st.text(max_size=12) | st.sampled_from(
    ["A?", "a.", "<end_of_turn>", "<start_of_turn>model\n", "{content}", "\ud800", " ", "\r\n"]
)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3)
                     | st.dictionaries(text, inner, max_size=3), max_leaves=8)  # fmt: skip
often = text | text | text | value
pair = st.lists(often, min_size=2, max_size=2) | value
history = st.lists(pair, max_size=4)
alpaca = st.fixed_dictionaries({}, optional={
    "instruction": often, "input": often, "output": often, "persona": often,
    "histories": history | history.map(json.dumps) | value})  # fmt: skip


def chat(role: str, content: str, roles: list[str]) -> st.SearchStrategy:
    message = st.fixed_dictionaries(
        {role: st.sampled_from(roles) | st.sampled_from(roles) | value},
        optional={content: often, "loss": st.sampled_from([0, 1, None, True, "no"])})  # fmt: skip
    return st.lists(message | value, max_size=6) | st.lists(message, max_size=6).map(json.dumps)


ROWS = {
    ALPACA: alpaca,
    SHAREGPT: st.fixed_dictionaries({}, optional={
        "conversations": chat("from", "value", ["system", "human", "gpt", "observation"])}),
    OPENAI: st.fixed_dictionaries({}, optional={
        "messages": chat("role", "content", ["system", "user", "assistant", "tool"]),
        "tools": value}),
}  # fmt: skip
DIALOGUES = {
    SHAREGPT: st.lists(st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]),
                                              "value": text})).map(lambda m: {"conversations": m}),
    OPENAI: st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]),
                                            "content": text})).map(lambda m: {"messages": m}),
    ALPACA: st.fixed_dictionaries({"instruction": text, "output": text,
                                   "histories": st.lists(st.lists(text, min_size=2, max_size=2))}),
}  # fmt: skip


@pytest.fixture(scope="module")
def makers(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    def make(handler, truncation):
        config = PreprocessConfig(
            input=("a",), tokenizer_name_or_path=Path("t"), output_prefix=Path("o"),
            prompt_type="chatml", handler_name=handler, seq_length=60,
            truncation=truncation)  # fmt: skip
        renderer = Renderer(tokenizer, find_template("chatml"))
        source = make_source(handler, MAPS[handler])
        if handler != ALPACA:
            source = dataclasses.replace(source, tool_form=QWEN_TOOLS)
        return ConversationRows(source, renderer, config)

    return {(h, t): make(h, t) for h in MAPS for t in ("drop", "oldest-turns", "newest-turns")}


def strings(found: object) -> list[str]:
    """Every text anywhere in a row, JSON texts opened."""
    if isinstance(found, str):
        try:
            inner = json.loads(found)
        except (ValueError, RecursionError):
            return [found]
        return [found, *([] if isinstance(inner, str) else strings(inner))]
    if isinstance(found, dict):
        return [text for item in found.items() for part in item for text in strings(part)]
    if isinstance(found, list):
        return [text for part in found for text in strings(part)]
    return []


def check(maker, row):
    """One bucket, no traceback, labels that are ids, and no trained word that is not the row's."""
    tally = Tally()
    try:
        made = maker.make([maker.take(row)])[0]
    except RowError as err:
        made = err
    if isinstance(made, RowError):
        assert made.field and made.reason and made.kind not in WRITTEN
        tally.leave_out(1, made)
    else:
        tally.keep(made)
        end, known = maker.renderer.end_id, "\n".join(strings(row))
        for ids, labels in made.pieces:
            assert 0 < len(ids) == len(labels) <= 60
            assert all(label in (IGNORE, i) for i, label in zip(ids, labels, strict=True))
            answers: list[list[int]] = [[]]
            for before, label in zip([IGNORE, *labels], labels, strict=False):
                if label not in (IGNORE, end):
                    answers[-1].append(label)
                elif label == end:
                    answers.append([])
                else:
                    assert before in (IGNORE, end)  # nothing trained stops without its end
            assert len(answers) > 1 and not answers[-1]
            for answer in answers[:-1]:
                said = maker.tokenizer.decode(answer)
                assert answer and all(line in known for line in said.split("\n"))
    assert tally.rows == sum(tally.buckets.values()) == 1


def fuzz(examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def run(makers, data):
        handler, truncation = data.draw(st.sampled_from(sorted(makers)))
        row = data.draw(ROWS[handler] | DIALOGUES[handler])
        check(makers[handler, truncation], row)

    return run


def test_no_row_breaks_anything(makers):
    fuzz(FEW)(makers)


@pytest.mark.slow
def test_no_row_of_many_breaks_anything(makers):
    fuzz(MANY)(makers)


piece = st.sampled_from([b'"', b",", b"\n", b"\r\n", b"[", b"]", b"{", b"}", b":", b"\\", b" ",
                         b'{"text": "a"}', b'{"text": "a"}\n', b"\xff", b"\x00", "é".encode(),
                         b"\xef\xbb\xbf", b"text,b\n"]) | st.binary(max_size=3)  # fmt: skip


def fuzz_bytes(examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.lists(piece, min_size=1, max_size=30).map(b"".join),
           suffix=st.sampled_from(["json", "jsonl", "csv", "txt", "json.gz", "parquet", "arrow"]),
           head=st.sampled_from([b"", b"[", b"text\n", b"\x1f\x8b", b"PAR1", b"ARROW1\0\0"]),
           size=st.integers(1, 40))  # fmt: skip
    def run(folder, monkeypatch, data, suffix, head, size):
        path = folder / f"a.{suffix}"
        path.write_bytes(head + data)
        monkeypatch.setattr(texts, "_CHUNK_BYTES", size)
        try:
            (file,) = find_inputs([str(path)])
            if file.is_packed:
                return
            reader = ChunkReader(("text",))
            found = [item for chunk in split_chunks(file) for item in reader.read(chunk)]
        except DataError as err:
            assert str(path) in str(err)
            return
        positions = [position for position, _ in found]
        assert positions == sorted(set(positions)) and len(line_numbers(file, positions)) == len(
            positions
        )
        assert all(isinstance(row, (dict, RowError)) for _, row in found)
        monkeypatch.setattr(texts, "_CHUNK_BYTES", 1 << 20)
        whole = [item for chunk in split_chunks(file) for item in reader.read(chunk)]
        shown = [(at, str(row) if isinstance(row, RowError) else row) for at, row in found]
        assert repr(shown) == repr(
            [(at, str(row) if isinstance(row, RowError) else row) for at, row in whole]
        )

    return run


def test_no_file_breaks_anything(tmp_path, monkeypatch):
    fuzz_bytes(FEW)(tmp_path, monkeypatch)


@pytest.mark.slow
def test_no_file_of_many_breaks_anything(tmp_path, monkeypatch):
    fuzz_bytes(MANY)(tmp_path, monkeypatch)


@pytest.mark.slow
def test_twenty_thousand_rows_in_one_run(tmp_path, tiny_tokenizer_dir):
    """Whole runs: as many rows as lines, each in one bucket, the same for any workers."""
    rows: list[object] = []

    @settings(max_examples=MANY, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(row=ROWS[OPENAI] | DIALOGUES[OPENAI])
    def collect(row):
        rows.append(row)

    collect()
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []
    for workers in (1, 2):
        config = PreprocessConfig(
            input=(str(path),), tokenizer_name_or_path=tiny_tokenizer_dir, workers=workers,
            output_prefix=tmp_path / f"out{workers}", prompt_type="chatml", on_bad_row="skip",
            handler_name=OPENAI)  # fmt: skip
        tally = prepare(config).tally
        assert tally.rows == len(rows) == sum(tally.buckets.values()) and tally.kept > 100
        data = tmp_path / f"out{workers}_packed_input_ids_document.bin"
        seen.append((tally, data.read_bytes()))
    assert seen[0] == seen[1]
