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
    [("\x1b]52;c;cm0gLXJm\x07ok", "]52;c;cm0gLXJmok"), ("\x1bP+q\x1b\\x", "P+q\\x"),
     ("\x9d52;c;QQ==\x9cy\x85\x90", "52;c;QQ==y"), ("\x1b[6n\x1bc\x08", "[6nc"),
     ("\x1b[31mred\x1b[0m", "[31mred[0m"), ("\x1b]0;title\x07x", "]0;titlex"), ("a\rb", "ab"),
     ("a\n\tb", "a\n\tb"), ("a\u202eb\u2066c", "abc"), ("\x9b2Jx\x7f\x00", "2Jx"), ("héé", "héé")],
)  # fmt: skip
def test_control_characters_do_not_pass(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    stream = TextStream(bytewise)
    assert "".join(stream.push(byte) for byte in raw.encode()) + stream.finish() == shown


def _fed(text: str, *stops: str, step: int = 1) -> tuple[list[str], TextStream]:
    """Pieces handed out of a text that comes `step` bytes a token, until a stop or its end."""
    data = text.encode()
    tokens = [data[at : at + step] for at in range(0, len(data), step)]
    stream = TextStream(
        lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace"), stops
    )
    pieces = []
    for index in range(len(tokens)):
        pieces.append(stream.push(index))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "text,stops,shown",
    [("one two\nUser: three", ("\nUser:",), "one two"), ("aab aaab", ("aaab",), "aab "),
     ("no stop here", ("\nUser:", "###"), "no stop here"), ("almost \nUse", ("\nUser:",),
     "almost \nUse"), ("first ## then END", ("END", "##"), "first "), ("END", ("END",), ""),
     ("ab", ("abc", "b"), "a"), ("你好。再见。", ("再",), "你好。"), ("xyz", (), "xyz")],
)  # fmt: skip
def test_stop_strings_are_never_shown_and_never_taken_back(
    text: str, stops: tuple[str, ...], shown: str, step: int
) -> None:
    pieces, stream = _fed(text, *stops, step=step)
    assert "".join(pieces) == shown
    assert stream.stopped == (shown != text)
    for count in range(len(pieces)):
        assert shown.startswith("".join(pieces[:count]))


def test_only_what_may_become_a_stop_string_waits() -> None:
    pieces, _ = _fed("a<b<end", "<end>")
    assert pieces == ["a", "", "<b", "", "", "", "", "<end"]


@pytest.mark.parametrize("step,kept", [(1, 7), (2, 3), (3, 2), (100, 0)])
def test_ids_before_the_stop_are_counted(step: int, kept: int) -> None:
    """What the dialogue keeps: whole tokens before the stop string, and whole characters."""
    _, stream = _fed("你好xSTOP tail", "STOP", step=step)
    assert stream.kept() == kept
    _, stream = _fed("你好", "STOP", step=1)
    assert stream.kept() == 6
    _, stream = _fed("a你", "你", step=1)
    assert stream.kept() == 1


def test_raw_text_is_for_machines() -> None:
    stream = TextStream(bytewise, raw=True)
    assert "".join(stream.push(byte) for byte in b"\x1b[0m") == "\x1b[0m"
