"""Tests of mindspeed_llm.data.prepare: what --prompt-type and its companions make of whole runs."""

from __future__ import annotations

import json

import pytest

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.prepare import prepare
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.errors import TemplateError

ROWS = [
    {"instruction": "B?", "input": "", "output": "b.", "histories": [["A?", "a."]]},
    {"instruction": "C {{idx}} {{content}}?", "input": "", "output": "<think>so</think>c.",
     "histories": [["A?", "<think>1</think>x"], ["B?", "y"]]},
    {"instruction": "x <end_of_turn> <|user|> <|im_end|> y", "input": "", "output": "d."},
]  # fmt: skip
TALKS = [
    Conversation.of("A?", "a.", "B?", "b."),
    Conversation.of("A?", "<think>1</think>x", "B?", "y", "C {{idx}} {{content}}?",
                    "<think>so</think>c."),
    Conversation.of("x <end_of_turn> <|user|> <|im_end|> y", "d."),
]  # fmt: skip


@pytest.fixture
def run(tmp_path, make_tokenizer_dir, every_marker):
    def make(name, chat_template=None, **changes):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        directory = make_tokenizer_dir(tmp_path / "t", markers=every_marker,
                                       chat_template=chat_template)  # fmt: skip
        config = PreprocessConfig(
            input=(str(tmp_path / "a.jsonl"),), tokenizer_name_or_path=directory, prompt_type=name,
            output_prefix=tmp_path / "out", map_keys={"history": "histories"}, **changes,
        )  # fmt: skip
        report = prepare(config)
        data = SFTDataset(config.output_prefix, tokenizer_sha256=None)
        rows = [(row["input_ids"].tolist(), row["labels"].tolist()) for row in data]
        return report, data, rows

    return make


@pytest.fixture
def rendered(rich_tokenizer, renderer_of):
    def make(talks, *names, **options):
        template = renderer_of(*names, **options).template
        return [tuple(row) for row in Renderer(rich_tokenizer, template).render_many(talks)]

    return make


@pytest.mark.parametrize("name", ["gemma", "glm4", "baichuan2"])
def test_mindspeeds_labels_are_written_and_announced(name, run, rendered, caplog):
    _, data, rows = run(name, template_compat="mindspeed")
    assert rows == rendered(TALKS, name, "mindspeed")
    assert data.manifest.settings["template_compat"] == "mindspeed"
    assert "another label than the token" in caplog.text
    # Theirs writes -100 into the input of rows that training shortens.
    assert all(token >= 0 for ids, _ in rows for token in ids)
    short = SFTDataset(data.files.prefix, tokenizer_sha256=None, max_length=len(rows[0][0]))
    assert short.left_out and all(bool((row["input_ids"] >= 0).all()) for row in short)


def test_by_default_labels_are_tokens(run, rendered, caplog):
    _, data, rows = run("gemma")
    assert rows == rendered(TALKS, "gemma")
    assert data.manifest.settings["template_compat"] is None
    assert all(label in (token, IGNORE) for row in rows for token, label in zip(*row, strict=True))
    assert "WARNING" not in caplog.text


def test_thinking_is_expanded_into_rows_that_end_with_it(run, rendered):
    report, data, rows = run("qwen3")
    first, second = TALKS[0], TALKS[1]
    samples = [
        Conversation(first.messages[:2]), first,
        Conversation(second.messages[:2]),
        Conversation((second.messages[0], Message("assistant", second.messages[1].content, False),
                      *second.messages[2:4])),
        second, TALKS[2],
    ]  # fmt: skip
    assert rows == rendered(samples, "qwen3")
    assert data.manifest.rows == 6 and report.tally.rows == report.tally.kept == 3


@pytest.mark.parametrize("thinking", ["keep", "strip-history"])
def test_thinking_may_stay_or_go_in_one_row(run, rendered, thinking):
    _, data, rows = run("qwen3", thinking=thinking)
    assert rows == rendered(TALKS, "qwen3", thinking=thinking)
    assert data.manifest.settings["thinking"] == thinking


def test_a_template_without_an_end_warns(run, rendered, caplog):
    _, _, rows = run("empty")
    assert rows == rendered(TALKS, "empty")
    assert "never learns to stop" in caplog.text


def test_the_wrong_template_is_refused_with_the_way_out(run, jinja):
    with pytest.raises(TemplateError, match="(?s)phi3 differs .*--no-verify-template"):
        run("phi3", chat_template=jinja["chatml"])
    assert run("phi3", chat_template=jinja["chatml"], verify_template=False)[1].manifest.rows == 3
    assert run("phi3", chat_template=jinja["phi3"])[1].manifest.rows == 3
