"""Tests of mindspeed_llm.data.prepare: over 200 hostile rows, each with the bucket it must end in.

A table of values times the places that take them, then shapes of whole rows, then raw lines.
"""

from __future__ import annotations

import copy
import json

import pytest

from mindspeed_llm.config.data import PLAIN_TEXT, PreprocessConfig
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.prepare import prepare

ALPACA = "AlpacaStyleInstructionHandler"
SHAREGPT = "SharegptStyleInstructionHandler"
OPENAI = "OpenAIInstructionHandler"
EMPTY = "empty"  # the kind of an empty value is named by its place

VALUES = [
    *((value, EMPTY) for value in (None, "", " ", "\n\t\r\n", "\u3000\u2003")),
    *((value, "not text") for value in (0, -1, 1.5, 10**400, True, False, float("nan"), {},
                                        {"a": "b"}, [1], ["text"], [[]])),
    *((value, "broken text") for value in ("\ud800", "half \udc00 here", "\ude00\ud83d")),
    *((value, "kept") for value in (
        "\x00", "a\x00b", "\r\n\r\nx", "\ufeffx", "\u202egnp.exe", "\u200b x", "\U0001f468\u200d"
        "\U0001f469\u200d\U0001f467", "\ue0f00\ue0f1", "\uffff", "e\u0301" * 50,
        "\x85\u2028\u2029x",
        "x <end_of_turn> y", "<start_of_turn>user\n", "<bos><eos><pad>", "<|im_end|>", "{{idx}}",
        "{content} {bos}", "{{ messages[0] }}{% raise %}", "%s %d %n", "\\u0000\\", "'\"`",
        "../../etc/passwd", "null", "[]", "{}", "0", "nan", "a" * 100_000, "word " * 5_000)),
]  # fmt: skip


def place(row, path, value):
    row = copy.deepcopy(row)
    spot = row
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = value
    return row


GOOD = {
    ALPACA: {"instruction": "B?", "input": "", "output": "b.", "persona": "S",
             "histories": [["A?", "a."]]},
    SHAREGPT: {"conversations": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "a."}]},
    OPENAI: {"messages": [{"role": "user", "content": "A?"},
                          {"role": "assistant", "content": "a."}]},
    PLAIN_TEXT: {"text": "A text."},
}  # fmt: skip
PLACES = {
    ALPACA: [(("instruction",), "empty user turn"), (("output",), "empty answer"),
             (("histories", 0, 0), "empty user turn"), (("histories", 0, 1), "empty answer"),
             (("input",), "kept"), (("persona",), "kept")],
    SHAREGPT: [(("conversations", 0, "value"), "empty user turn"),
               (("conversations", 1, "value"), "empty answer")],
    OPENAI: [(("messages", 0, "content"), "empty user turn"),
             (("messages", 1, "content"), "empty answer")],
    PLAIN_TEXT: [(("text",), "empty text")],
}  # fmt: skip


def by_value(handler):
    for path, empty in PLACES[handler]:
        for value, kind in VALUES:
            if handler == OPENAI and isinstance(value, list):
                continue  # a list of pieces: among the shapes
            yield place(GOOD[handler], path, value), empty if kind == EMPTY else kind


def messages(*turns, **more):
    names = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": names.get(t[0], t), "content": t[1:]} for t in turns], **more}


U, A = GOOD[OPENAI]["messages"]
SHAPES = {
    ALPACA: [
        *(({**GOOD[ALPACA], "histories": value}, "kept") for value in (
            [], None, "", "  ", "[]", "null", '[["A?", "a."]]', [["A?", "a."]] * 50)),
        *(({**GOOD[ALPACA], "histories": value}, "malformed history") for value in (
            {}, {"A?": "a."}, 5, True, "text", '"text"', "{", "[" * 100_000, "5", [["A?"]], [[]],
            [["A?", "a.", "x"]], ["A?", "a."], [None], [{"q": "A?", "a": "a."}], "[[[]]]")),
        *(({**GOOD[ALPACA], "histories": [["A?", answer]]}, kind) for answer, kind in (
            (None, "empty answer"), (5, "not text"), ({}, "not text"))),
        ({k: v for k, v in GOOD[ALPACA].items() if k != "histories"}, "kept"),
        ({k: v for k, v in GOOD[ALPACA].items() if k != "input"}, "kept"),
        ({k: v for k, v in GOOD[ALPACA].items() if k != "output"}, "empty answer"),
        ({"instruction": "", "input": "x", "output": "o"}, "kept"),
        ({"output": "o"}, "empty user turn"),
        ({}, "empty user turn"),
        ({"": "", "\ud800": 1, "instruction": "q", "output": "o"}, "kept"),
        ({str(i): i for i in range(500)} | GOOD[ALPACA], "kept"),
    ],
    OPENAI: [
        ({"messages": []}, "empty conversation"), ({"messages": None}, "empty conversation"),
        ({"messages": ""}, "empty conversation"), ({}, "empty conversation"),
        *(({"messages": value}, "malformed messages") for value in (
            {}, 5, "text", '{"role": "user"}', ["text"], [[U, A]], [None, U], [5])),
        ({"messages": json.dumps([U, A])}, "kept"),
        (messages("sS", "uA?", "aa."), "kept"), (messages("s", "uA?", "aa."), "kept"),
        (messages("uA?", "aa.", "uB?", "ab."), "kept"),
        (messages("sS"), "empty conversation"), (messages("uA?"), "no answer"),
        (messages("aa."), "role order"), (messages("aa.", "uA?"), "role order"),
        (messages("aa.", "uA?", "ab."), "repaired"), (messages("uA?", "uB?", "ab."), "repaired"),
        (messages("uA?", "aa.", "uB?"), "repaired"), (messages("uA?", "aa.", "ab."), "repaired"),
        (messages("uA?", "sS", "aa."), "role order"),
        *(({"messages": [{**U, "role": role}, A]}, "unknown role") for role in (
            None, "", "User", "human", "developer", 5, [], {}, "\ud800", "user ")),
        ({"messages": [{"content": "A?"}, A]}, "unknown role"),
        ({"messages": [{"role": "user"}, A]}, "empty user turn"),
        *(({"messages": [U, {**A, key: value}]}, "malformed messages")
          for key in ("loss", "weight") for value in ("yes", 2, -1, 0.5, [], {}, "0")),
        *(({"messages": [U, {**A, "loss": value}]}, "no target") for value in (0, False, 0.0)),
        *(({"messages": [U, {**A, "loss": value}]}, "kept") for value in (1, True, None, 1.0)),
        *(({"messages": [{**U, "content": pieces}, A]}, kind) for pieces, kind in (
            ([], "empty user turn"), ([{"type": "text", "text": "A?"}], "kept"),
            ([{"type": "image_url", "image_url": {}}], "not text"), (["A?"], "not text"),
            ([{"type": "text"}], "empty user turn"), ([{"type": "text", "text": 5}], "not text"))),
    ],
}  # fmt: skip
SHAPES[SHAREGPT] = [
    (
        {"conversations": [{"from": "system", "value": value}, *GOOD[SHAREGPT]["conversations"]]},
        kind,
    )
    for value, kind in ((None, "kept"), ("", "kept"), (5, "not text"), ("\ud800", "broken text"))
]  # fmt: skip
LINES = [
    (b"", None), (b"   ", None), (b"\x00", "not JSON"), (b"{", "not JSON"), (b'{"instruction": "a"',
    "not JSON"), (b"{'instruction': 'a'}", "not JSON"), (b'{"a": 1,}', "not JSON"),
    (b'{"a": 01}', "not JSON"), (b"[" * 100_000, "not JSON"), (b'{"a":' * 50_000, "not JSON"),
    (b'{"a": ' + b"9" * 5_000 + b"}", "not JSON"), (b'{"a": "\x01"}', "not JSON"),
    (b'{"a": "\xff\xfe"}', "not UTF-8"), ('{"a": "ü"}'.encode("utf-16"), "not UTF-8"),
    (b"null", "not an object"), (b"true", "not an object"), (b'"text"', "not an object"),
    (b"NaN", "not an object"), (b"[]", "not an object"), (b"17", "not an object"),
    (b'{"instruction": NaN, "output": "o"}', "not text"),
    (b'\xef\xbb\xbf{"instruction": "q", "output": "o"}', "not JSON"),
    (b'{"instruction": "q", "output": "o"}\r', "kept"),
    (b'\t{"output": "o", "instruction": "\\ud83d\\ude00"} ', "kept"),
    (b'{"instruction": "q", "output": "\\ud83d"}', "broken text"),
]  # fmt: skip


def test_there_are_over_two_hundred_of_them():
    assert sum(len(list(by_value(h))) for h in PLACES) + sum(map(len, SHAPES.values())) > 450


@pytest.fixture
def run(tmp_path, tiny_tokenizer_dir):
    def make(handler, lines, **changes):
        path = tmp_path / "hostile.jsonl"
        path.write_bytes(b"\n".join(lines))
        keys = {"history": "histories", "system": "persona"} if handler == ALPACA else None
        config = PreprocessConfig(
            input=(str(path),), tokenizer_name_or_path=tiny_tokenizer_dir, handler_name=handler,
            output_prefix=tmp_path / "out" / "set", on_bad_row="skip", map_keys=keys,
            prompt_type=None if handler == PLAIN_TEXT else "gemma", **changes)  # fmt: skip
        return config, prepare(config)

    return make


def check(config, report, kinds):
    """Every row is in its bucket, those that are not used are listed with line, field, reason."""
    used = ("kept", "repaired")
    assert report.tally.rows == len(kinds) == sum(report.tally.buckets.values())
    found = {row.line: row.kind for row in report.listed}
    wanted = {line: kind for line, kind in kinds.items() if kind not in used}
    assert found == wanted
    assert all(row.field and row.reason for row in report.listed)
    assert report.tally.buckets["repaired"] == list(kinds.values()).count("repaired")
    dataset = SFTDataset(config.output_prefix, tokenizer_sha256=None)
    assert len(dataset) == report.tally.kept == len(kinds) - len(wanted)


@pytest.mark.parametrize("handler", PLACES)
def test_every_hostile_row_ends_in_its_bucket(run, handler):
    rows = [*by_value(handler), *SHAPES.get(handler, ())]
    lines = [json.dumps(row).encode() for row, _ in rows]
    config, report = run(handler, lines, append_eod=handler == PLAIN_TEXT)
    check(config, report, {n: kind for n, (_, kind) in enumerate(rows, 1)})


def test_every_hostile_line_ends_in_its_bucket(run):
    good = json.dumps(GOOD[ALPACA]).encode()
    lines = [good, *(line for line, _ in LINES)]
    kinds = {n: kind for n, (_, kind) in enumerate(LINES, 2) if kind is not None}
    config, report = run(ALPACA, lines)
    check(config, report, {1: "kept", **kinds})


def test_one_line_of_many_megabytes(run):
    long = {**GOOD[ALPACA], "output": "hello " * 100_000}
    config, report = run(ALPACA, [json.dumps(long).encode(), json.dumps(GOOD[ALPACA]).encode()],
                         seq_length=100)  # fmt: skip
    assert dict(report.tally.buckets) == {"over-length": 1, "kept": 1}
