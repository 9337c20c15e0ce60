"""Tests of mindspeed_llm.data.tokenizer with a tokenizer trained in this process."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import tokenizers

from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.errors import DataError, TemplateError


def test_special_text_stays_text(tokenizer):
    for marker in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<bos>", "<eos>"):
        content = f"x {marker} y"
        ids = tokenizer.encode_text(content)
        assert not set(ids) & tokenizer.special_ids
        assert tokenizer.decode(ids) == content
        # The same text with special tokens on does hold the marker: the test can fail.
        assert tokenizer.token_id(marker) in tokenizer.hf.encode(content)


def test_the_transformers_tokenizer_is_left_as_it_was(tokenizer):
    assert tokenizer.hf.backend_tokenizer.encode_special_tokens is False


def test_ordinary_added_tokens_can_be_guarded(tiny_tokenizer_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_tokenizer_dir, copy)
    spec = json.loads((copy / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["special"] = token["content"] not in ("<start_of_turn>", "<end_of_turn>")
    (copy / "tokenizer.json").write_text(json.dumps(spec))
    loose = load_tokenizer(copy)
    marker = loose.token_id("<end_of_turn>")
    assert marker in loose.encode_text("x<end_of_turn>")
    guarded = loose.guarding(("<start_of_turn>", "<end_of_turn>"))
    assert marker not in guarded.encode_text("x<end_of_turn>")
    assert guarded.token_id("<end_of_turn>") == marker
    assert loose.guarding(("<eos>",)) is loose


def test_a_missing_marker_shows_its_pieces(make_tokenizer_dir, tmp_path):
    bare = load_tokenizer(make_tokenizer_dir(tmp_path / "t", markers=("<pad>", "<eos>", "<bos>")))
    with pytest.raises(
        TemplateError, match=r"'<start_of_turn>' is not one token .* but \d+ pieces"
    ):
        bare.token_id("<start_of_turn>")


def test_ids_of_eos_and_padding(make_tokenizer_dir, tmp_path):
    directory = make_tokenizer_dir(tmp_path / "t", pad=None, generation_eos=[1, 9])
    tokenizer = load_tokenizer(directory)
    assert tokenizer.eos_ids == (tokenizer.eos_id, 9)
    assert tokenizer.pad_id == tokenizer.eos_id
    assert tokenizer.vocab_size == len(tokenizer.hf)


def test_the_hash_tells_vocabularies_apart(
    tokenizer, tiny_tokenizer_dir, make_tokenizer_dir, tmp_path
):
    assert load_tokenizer(tiny_tokenizer_dir).sha256 == tokenizer.sha256
    other = make_tokenizer_dir(tmp_path / "t", markers=("<eos>", "<bos>", "<pad>"))
    assert load_tokenizer(other).sha256 != tokenizer.sha256


def test_a_copy_for_another_process_encodes_alike(tokenizer):
    assert tokenizer.hf is not None
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert "transformers" not in str(copy.__dict__)  # it is not sent
    texts = ["Hello\n\nthere", "<end_of_turn>", "e\u0301 \U0001f600 \x00 \r\n"]
    assert copy.encode_texts(texts) == [tokenizer.encode_text(t) for t in texts]


def test_half_a_surrogate_pair_is_no_text(tokenizer):
    with pytest.raises(DataError, match="half of a surrogate pair"):
        tokenizer.encode_text("a \udfff b")


def test_a_tokenizer_file_stands_for_its_directory(tokenizer, tiny_tokenizer_dir):
    assert load_tokenizer(tiny_tokenizer_dir / "tokenizer.json").sha256 == tokenizer.sha256


def test_directories_without_a_tokenizer_are_named(tmp_path):
    with pytest.raises(DataError, match="--tokenizer-name-or-path .*nowhere: no such directory"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no tokenizer there; expected one of tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot read a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_damaged_generation_config_is_named(make_tokenizer_dir, tmp_path):
    directory = make_tokenizer_dir(tmp_path / "t")
    (directory / "generation_config.json").write_text('{"eos_token_id": "two"}')
    with pytest.raises(DataError, match="eos_token_id 'two'"):
        load_tokenizer(directory)


def test_a_blank_before_the_first_text_is_not_put_before_every_piece(tiny_tokenizer_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_tokenizer_dir, copy)
    spec = json.loads((copy / "tokenizer.json").read_text())
    metaspace = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": False}
    for step in (metaspace, {"type": "Sequence", "pretokenizers": [metaspace]}):
        spec["pre_tokenizer"] = step
        (copy / "tokenizer.json").write_text(json.dumps(spec))
        tokenizer = load_tokenizer(copy)
        whole = tokenizer.hf.backend_tokenizer
        assert whole.encode("Hi", add_special_tokens=False).tokens[0] == "_"
        marked = whole.encode("<eos>Hi", add_special_tokens=False).ids
        assert [tokenizer.token_id("<eos>"), *tokenizer.encode_text("Hi")] == marked


@pytest.mark.parametrize(
    ("step", "blanks"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": "_"}}, "yyn"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}]}},
         "yyn"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always",
                            "split": False}}, "yyn"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first",
                            "split": False}}, "ynn"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never",
                            "split": False}}, "nnn"),
    ],
)  # fmt: skip
def test_a_text_gets_a_blank_where_it_stands(step, blanks, tokenizer):
    """At the start of a row, behind a marker, inside a text; the same in another process."""
    backend = tokenizer.hf.backend_tokenizer
    spec = {**json.loads(backend.to_str()), **step}
    odd = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)))
    for one in (odd, pickle.loads(pickle.dumps(odd)), odd.guarding(("x",))):
        for context, blank in zip(("start", "marker", "text"), blanks, strict=True):
            text = "".join(one.token(i) for i in one.encode_text("Hi", context))
            assert text == ("_Hi" if blank == "y" else "Hi")
            assert one.encode_texts(["Hi"], context) == [one.encode_text("Hi", context)]


def test_white_space_that_added_tokens_swallow_is_known(tokenizer):
    spec = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    spec["added_tokens"][3]["rstrip"] = True
    spec["added_tokens"][4]["lstrip"] = True
    names = [token["content"] for token in spec["added_tokens"]]
    odd = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)))
    assert odd.strips == {names[3]: (False, True), names[4]: (True, False)}
    assert tokenizer.strips == {}
