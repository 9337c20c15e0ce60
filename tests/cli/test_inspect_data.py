"""mindspeed-llm inspect-data as a user sees it, piped and in colour."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from mindspeed_llm.cli import inspect_data
from mindspeed_llm.cli.inspect_data import show_rows
from mindspeed_llm.cli.main import main, run
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.view import view_row

NASTY = "red \x1b[31m \x07 [bold]x[/bold] :smile: \\ end"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def prefix(tmp_path, tiny_sft_data, tiny_tokenizer_dir):
    return str(tiny_sft_data(tmp_path / "set", tiny_tokenizer_dir, capacity=64, multiple=4))


def shown(row, **options):
    stream = io.StringIO()
    console = Console(file=stream, markup=False, highlight=False, emoji=False, **options)
    show_rows(console, [row])
    return stream.getvalue()


@pytest.fixture
def nasty(tokenizer):
    rendered = Renderer(tokenizer, find_template("gemma")).render(Conversation.of(NASTY, NASTY))
    return view_row(0, rendered.ids, rendered.labels, tokenizer)


def test_piped_output_is_plain_text_that_marks_what_is_trained(nasty):
    text = shown(nasty)
    assert all(character.isprintable() or character == "\n" for character in text)
    lines = text.splitlines()
    (trained,) = [line for line in lines if line[22:25] == "+++"]
    expected = NASTY.replace("\\", "\\\\").replace("\x1b", "\\x1b").replace("\x07", "\\x07")
    assert trained[26:].replace("│", "") == expected + "<end_of_turn>"
    assert sum(expected in line.replace("│", "") for line in lines) == 2


def test_the_mark_between_tokens_is_never_a_token(nasty):
    tokens = ["│", *nasty.tokens[1:]]
    text = shown(dataclasses.replace(nasty, tokens=tokens))
    assert "0-" in text and " \\u2502│<start_of_turn>│" in text


def test_in_colour_only_our_own_escapes_are_written(nasty):
    text = shown(nasty, force_terminal=True, color_system="truecolor", width=60)
    assert "\x1b[" in text
    assert re.sub(r"\x1b\[[\d;]*m", "", text) == shown(nasty)


def test_a_packed_data_set(prefix, tiny_tokenizer_dir, capsys):
    arguments = [prefix, "--rows", "0,2", "--tokenizer-name-or-path", str(tiny_tokenizer_dir)]
    assert main(["inspect-data", *arguments]) == 0
    text = capsys.readouterr().out
    assert re.search(r"packing efficiency +\d\d\.\d\d%", text)
    assert re.search(r"^template +gemma \(0\)$", text, flags=re.M)
    assert "trained answers a conversation: least 0" in text
    assert "row 0: 64 tokens" in text and "row 2: 64 tokens" in text and "row 1:" not in text
    assert re.search(r"^      2  0-\d+ ", text, flags=re.M)
    assert re.search(r"^      -  \d+-\d+ +padding: \d+ tokens?$", text, flags=re.M)


def test_a_table_has_one_line_a_token(prefix, capsys):
    assert run(inspect_data.main, [prefix, "--table"]) == 0
    lines = capsys.readouterr().out.split("row 0: ")[1].splitlines()[2:]
    assert len(lines) == 64
    fields = [line.split() for line in lines]
    assert [int(row[0]) for row in fields] == list(range(64))
    assert any(row[4] == row[3] and row[5] == "+++" for row in fields)


def test_json_is_for_machines(prefix, capsys):
    assert run(inspect_data.main, [prefix, "--rows", "1", "--json"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    found = json.loads(text)
    (row,) = found["rows"]
    assert row["row"] == 1 and row["tokens"] is None
    assert {len(row[key]) for key in ("input_ids", "labels", "segments", "positions")} == {64}
    assert found["manifest"]["packing"]["capacity"] == 64
    assert found["per_conversation"]["tokens"]["most"] <= 30


def test_histograms_are_drawn(prefix, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    image = tmp_path / "h.png"
    assert run(inspect_data.main, [prefix, "--plot", str(image)]) == 0
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rows", "99"], "--rows 99: the data set has rows 0 to"),
        (["--rows", "x"], "neither a number nor a range"),
        (["--tokenizer-name-or-path", "nowhere"], "--tokenizer-name-or-path nowhere"),
        (["--plot", "x.pdf"], "ends in .png"),
    ],
)
def test_a_mistake_is_one_error(prefix, capsys, more, words):
    assert run(inspect_data.main, [prefix, *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("error: ") == 1 and words in captured.err


def test_the_prefix_is_needed_and_checked(capsys):
    assert run(inspect_data.main, []) == 2
    assert "PREFIX" in capsys.readouterr().err
    assert run(inspect_data.main, ["/nowhere/set"]) == 2
    assert "data set /nowhere/set: missing" in capsys.readouterr().err
