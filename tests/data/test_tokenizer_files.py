"""Tests of mindspeed_llm.data.tokenizer_files against what transformers reads of the same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.data.tokenizer_files import chat_template, read_files
from mindspeed_llm.errors import DataError

TEXTS = ("Hello.\n\n1 2  3", " lead", "<end_of_turn><mask>\t<|im_end|>", "e\u0301\U0001f600\x00\r",
         "\u4f60\u597d\uff0c\u4e16\u754c", "a" * 300, "")  # fmt: skip


def changed(directory: Path, target: Path, **changes: object) -> Path:
    """A copy with other values in tokenizer_config.json; None removes a key."""
    shutil.copytree(directory, target)
    file = target / "tokenizer_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v != "(none)"}))
    return target


def assert_as_transformers(directory: Path) -> None:
    """Ids, special tokens, names: all that the rest of the package takes from a tokenizer."""
    read = read_files(directory)
    assert read is not None
    hf = AutoTokenizer.from_pretrained(directory)
    ours = load_tokenizer(directory)
    theirs = Tokenizer(hf.backend_tokenizer)
    assert [ours.encode_whole(t) for t in TEXTS] == [theirs.encode_whole(t) for t in TEXTS]
    assert ours.encode_texts(TEXTS) == theirs.encode_texts(TEXTS)
    assert (ours.special_ids, ours.strips) == (theirs.special_ids, theirs.strips)
    assert (ours.sha256, ours.vocab_size) == (theirs.sha256, theirs.vocab_size)
    assert (ours.bos_token, ours.eos_token) == (hf.bos_token, hf.eos_token)
    assert ours.chat_template == hf.chat_template
    said = {name: text for name, text in hf.special_tokens_map.items() if isinstance(text, str)}
    assert {n: t for n, t in read.named.items() if n in said} == said


def test_the_tiny_tokenizer_is_read_as_transformers_reads_it(tiny_tokenizer_dir, tmp_path):
    assert_as_transformers(tiny_tokenizer_dir)
    AutoTokenizer.from_pretrained(tiny_tokenizer_dir).save_pretrained(tmp_path)
    assert_as_transformers(tmp_path)


def test_what_the_configuration_calls_special_is(tiny_tokenizer_dir, tmp_path):
    spec = json.loads((tiny_tokenizer_dir / "tokenizer.json").read_text())
    described = {str(t["id"]): {k: v for k, v in t.items() if k != "id"}
                 for t in spec["added_tokens"]}  # fmt: skip
    directory = changed(tiny_tokenizer_dir, tmp_path / "t", added_tokens_decoder=described)
    for token in spec["added_tokens"]:
        token["special"] = token["content"] != "<end_of_turn>"
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    assert_as_transformers(directory)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.token_id("<end_of_turn>") not in tokenizer.encode_text("x<end_of_turn>y")


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "LlamaTokenizer"},  # rebuilt with other blanks
        {"tokenizer_class": "GemmaTokenizer"},  # the class has names of its own
        {"tokenizer_class": "(none)"},
        {"pad_token": "<a token that has to be added>"},
        {"additional_special_tokens": ["<another>"]},
        {"added_tokens_decoder": {"3": {"content": "<not that one>", "special": True}}},
        {"added_tokens_decoder": {"1": {"content": "<eos>", "rstrip": True, "special": True}}},
    ],
)
def test_where_transformers_may_say_more_it_is_asked(changes, tiny_tokenizer_dir, tmp_path):
    assert read_files(changed(tiny_tokenizer_dir, tmp_path / "t", **changes)) is None


def test_older_files_beside_it_leave_it_to_transformers(tiny_tokenizer_dir, tmp_path):
    directory = changed(tiny_tokenizer_dir, tmp_path / "t", eos_token="(none)")
    (directory / "special_tokens_map.json").write_text('{"eos_token": "<eos>"}')
    assert read_files(directory) is None
    assert load_tokenizer(directory).eos_token == "<eos>"


def test_the_template_file_comes_first(tmp_path):
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    assert chat_template(tmp_path, {}) is None
    assert chat_template(tmp_path, {"chat_template": "x"}) == "x"
    assert chat_template(tmp_path, {"chat_template": several}) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert chat_template(tmp_path, {"chat_template": "x"}) == "file"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_named(name, tiny_tokenizer_dir, tmp_path):
    directory = changed(tiny_tokenizer_dir, tmp_path / "t")
    (directory / name).write_text('{"version": "1.0"')
    with pytest.raises(DataError, match=f"{name}: not "):
        load_tokenizer(directory)


def test_code_of_a_checkpoint_is_not_run(tiny_tokenizer_dir, tmp_path):
    directory = changed(tiny_tokenizer_dir, tmp_path / "t", tokenizer_class="OddTokenizer",
                        auto_map={"AutoTokenizer": ["odd.OddTokenizer", None]})  # fmt: skip
    (directory / "odd.py").write_text("raise SystemExit('was run')")
    assert load_tokenizer(directory).eos_token == "<eos>"


def test_reading_imports_neither_transformers_nor_torch(tiny_tokenizer_dir):
    code = ("import sys; from mindspeed_llm.data.tokenizer import load_tokenizer; "
            f"load_tokenizer({str(tiny_tokenizer_dir)!r}).encode_text('x'); "
            "print(sorted({'torch', 'transformers'} & set(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REAL = os.environ.get("MINDSPEED_LLM_TOKENIZERS", "")


@pytest.mark.skipif(not REAL, reason="MINDSPEED_LLM_TOKENIZERS names no directories")
@pytest.mark.parametrize("directory", REAL.split(os.pathsep))
def test_real_tokenizers_are_read_as_transformers_reads_them(directory):
    if "auto_map" in (Path(directory) / "tokenizer_config.json").read_text():
        pytest.skip("transformers reads it with the checkpoint's own code only")
    if read_files(Path(directory)) is not None:
        assert_as_transformers(Path(directory))
