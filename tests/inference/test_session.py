"""A session comes back as it was, or one error says where the file is wrong."""

import json
import os
from pathlib import Path

import pytest

from mindspeed_llm.data.dialogue import Turn
from mindspeed_llm.errors import DataError
from mindspeed_llm.inference.manner import Manner
from mindspeed_llm.inference.sampling import Sampling
from mindspeed_llm.inference.session import (
    Identity,
    Made,
    Session,
    read_session,
    weights_fingerprint,
    write_session,
)

MADE = Made(sampling=Sampling(temperature=0.7, seed=5), system="Be brief.", first=0, limit=9,
            ending="length")  # fmt: skip
SESSION = Session(
    identity=Identity(model="m", tokenizer="t", template="chatml c"),
    manner=Manner(stop=("\n",), history_turns=2),
    system=None,
    replies=3,
    left_out=1,
    turns=[Turn("a \x1b é", [1, 2], "b", MADE), Turn("c", [], "", MADE)],
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    write_session(path, SESSION)
    assert read_session(path) == SESSION
    assert path.stat().st_mode & 0o777 == 0o600
    write_session(path, SESSION)
    assert os.listdir(tmp_path) == ["talk.json"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for path in (tmp_path / "dir", tmp_path / "absent" / "talk.json"):
        with pytest.raises(DataError, match="cannot be written"):
            write_session(path, SESSION)
    assert os.listdir(tmp_path) == ["dir"]


@pytest.mark.parametrize(
    "path,value,message",
    [(("format",), "other", "its format is not"), (("identity",), {}, "identity"),
     (("identity", "model"), 5, "identity"), (("manner", "top_p"), 7, "manner"),
     (("manner", "colour"), 7, "manner"), (("system",), 5, "system"),
     (("replies",), -1, "replies"), (("left_out",), True, "replies, left_out"),
     (("turns", 0, "ids"), ["x"], r"turns\[0\]"), (("turns", 1, "user"), None, r"turns\[1\]"),
     (("turns", 1, "made", "ending"), "tired", r"turns\[1\]"),
     (("turns", 0, "made", "first"), 1, r"turns\[0\]"),
     (("turns", 0, "made", "sampling", "seed"), -1, r"turns\[0\]"), (("turns",), 3, "turns|left")],
)  # fmt: skip
def test_a_file_that_is_no_session_names_the_field(
    tmp_path: Path, path: tuple, value: object, message: str
) -> None:
    file = tmp_path / "talk.json"
    write_session(file, SESSION)
    row = json.loads(file.read_text())
    place = row
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        read_session(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\x00"])
def test_a_file_that_is_no_json(tmp_path: Path, text: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    with pytest.raises(DataError, match="not a session"):
        read_session(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_session(tmp_path / "absent")


def test_a_fingerprint_sees_other_weights(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    data = bytearray(os.urandom(3_000_000))
    file.write_bytes(data)
    first = weights_fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("of no weight")
    assert weights_fingerprint(tmp_path) == first
    file.write_bytes(bytes(b ^ 1 for b in data))
    assert weights_fingerprint(tmp_path) != first
    data[-1] ^= 1
    file.write_bytes(data)
    assert weights_fingerprint(tmp_path) != first
    file.write_bytes(data[:1000])
    assert weights_fingerprint(tmp_path) != first
    adapted = weights_fingerprint(tmp_path, tmp_path)
    assert adapted != weights_fingerprint(tmp_path), "an adapter makes another model"


def test_identities_name_what_differs() -> None:
    other = Identity(model="n", tokenizer="t", template="gemma c")
    assert SESSION.identity.differences(other) == ["model", "template"]
    assert SESSION.identity.differences(SESSION.identity) == []
