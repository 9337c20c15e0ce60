"""Holds the tokenizer that comes out of GGUF key/value pairs, on hand-made vocabularies."""

import json

import pytest

from mindspeed_llm.checkpoint.gguf_tokenizer import build_tokenizer, tokenizer_files
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import ModelError

WORDS = ["<|end|>", "<tool>", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", "Ġ", "Ċ", "'", "."]
MERGES = ["a b", "Ġ a", "Ġa b", "1 2", "Ċ Ċ", "' s"]


def values(**changes):
    tokens = WORDS + [merge.replace(" ", "") for merge in MERGES]
    types = [3, 4] + [1] * (len(tokens) - 2)
    given = {
        "model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": types, "merges": MERGES,
        "eos_token_id": 0, "add_bos_token": False,
    } | changes  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in given.items()}


def pieces(text, **changes):
    return build_tokenizer(values(**changes)).encode(text, add_special_tokens=False).tokens


def test_merges_follow_their_order():
    assert pieces("ab ab") == ["ab", "Ġ", "ab"]
    later = [*MERGES[1:], MERGES[0]]
    assert pieces("ab ab", merges=later) == ["ab", "Ġab"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("smollm", ["1", "2"]), ("gpt-2", ["12"]), ("default", ["12"]), ("llama-bpe", ["12"])],
)
def test_each_kind_cuts_words_its_way(kind, expected):
    assert pieces("12", pre=kind) == expected


def test_llama_keeps_line_ends_with_what_stands_before():
    # Llama 3 takes punctuation and the line ends after it as one word, GPT-2 does not.
    tokens = [*values()["tokenizer.ggml.tokens"], ".Ċ"]
    changes = {"tokens": tokens, "token_type": [3, 4] + [1] * (len(tokens) - 2),
               "merges": [*MERGES, ". Ċ"]}  # fmt: skip
    assert pieces("a.\n", pre="llama-bpe", **changes) == ["a", ".Ċ"]
    assert pieces("a.\n", pre="gpt-2", **changes) == ["a", ".", "Ċ"]


def test_control_and_user_tokens_are_found_in_text():
    tokenizer = build_tokenizer(values())
    assert tokenizer.encode("a<|end|>b<tool>").ids == [2, 0, 3, 1]
    added = tokenizer.get_added_tokens_decoder()
    assert (added[0].special, added[1].special) == (True, False)


def test_files_load_and_give_the_text_back(tmp_path):
    template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    files = tokenizer_files(values() | {"tokenizer.chat_template": template,
                                        "llama.context_length": 77})  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tokenizer = load_tokenizer(tmp_path)
    text = "ab 12's\n\nab"
    assert tokenizer.decode(tokenizer.encode_text(text)) == text
    assert (tokenizer.eos_id, tokenizer.bos_id) == (0, None)
    config = json.loads(files["tokenizer_config.json"])
    assert (config["chat_template"], config["model_max_length"]) == (template, 77)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"pre": "deepseek-llm"}, "tokenizer.ggml.pre is 'deepseek-llm'"),
        ({"token_type": [1]}, "types"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "a token twice"),
        ({"merges": ["q z"]}, "merges do not fit"),
        ({"add_bos_token": True}, "BOS"),
    ],
)
def test_what_is_not_understood_is_refused(changes, said):
    with pytest.raises(ModelError, match=said):
        tokenizer_files(values(**changes))
