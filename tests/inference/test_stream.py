"""Streamed text is the decoded text: complete characters only, never taken back, no controls."""

import pytest

from mindspeed_llm.inference.stream import INCOMPLETE, TextStream, printable

TEXT = "Café 你好, 🎉🎉! ok"


def bytewise(ids: list[int]) -> str:
    """Decoder of a byte-level tokenizer: one byte a token."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_bytes_are_held_back_until_the_character_is_complete() -> None:
    stream = TextStream(bytewise)
    pieces = [stream.push(byte) for byte in TEXT.encode()]
    assert "".join(pieces) + stream.finish() == TEXT
    assert INCOMPLETE not in "".join(pieces)
    assert pieces[:4] == ["C", "a", "f", ""]


def test_words_keep_their_spaces() -> None:
    """Sentencepiece style: the first token of a text loses its leading space."""
    words = ["▁Hello", "▁my", "▁frie", "nd", ".", "▁Bye"]
    stream = TextStream(lambda ids: "".join(words[i] for i in ids).replace("▁", " ").lstrip(" "))
    assert "".join(stream.push(i) for i in range(len(words))) == "Hello my friend. Bye"


def test_special_tokens_give_no_text() -> None:
    stream = TextStream(lambda ids: bytes(i for i in ids if i < 256).decode())
    assert [stream.push(i) for i in (72, 999, 105)] == ["H", "", "i"]


def test_a_cut_character_at_the_end_is_left_out() -> None:
    stream = TextStream(bytewise)
    data = "ok 🎉".encode()[:-1]
    assert "".join(stream.push(byte) for byte in data) + stream.finish() == "ok "
    assert stream.finish() == ""


@pytest.mark.parametrize(
    "raw,shown",
    [("\x1b[31mred\x1b[0m", "[31mred[0m"), ("\x1b]0;title\x07x", "]0;titlex"), ("a\rb", "ab"),
     ("a\n\tb", "a\n\tb"), ("a\u202eb\u2066c", "abc"), ("\x9b2Jx\x7f\x00", "2Jx"), ("héé", "héé")],
)  # fmt: skip
def test_control_characters_do_not_pass(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    stream = TextStream(bytewise)
    assert "".join(stream.push(byte) for byte in raw.encode()) + stream.finish() == shown
