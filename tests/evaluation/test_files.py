"""What an evaluation is given is read back, or named where it is wrong."""

import json
from pathlib import Path

import pytest

from mindspeed_llm.data.sources import make_source
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.evaluation import files
from mindspeed_llm.evaluation.dialogues import test_set as draw_test_set
from mindspeed_llm.evaluation.dialogues import training_set

OPENAI = "OpenAIInstructionHandler"
TALK = [(("Is it open?", "Yes, until six."), ("Thank you.", "You are welcome."))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    counts = files.write(
        tmp_path, train=training_set(6, 1), talk=TALK, test=draw_test_set(2, 1, (2, 4))
    )
    assert {name for name in counts} == {path.name for path in tmp_path.iterdir()}
    assert counts["train.jsonl"] == 7 and counts["test.jsonl"] == 16
    return tmp_path


def test_reads_back_what_was_written(folder: Path) -> None:
    assert files.read_dialogues(folder / "test.jsonl") == draw_test_set(2, 1, (2, 4))
    assert files.read_script(folder / "guide.json")[-1].startswith("Here I go again.")


def test_training_rows_train_the_replies_to_probes_and_some_acknowledgements(folder: Path) -> None:
    source = make_source(OPENAI, None)
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    said = source.read(json.loads(lines.pop())).messages
    assert [m.content for m in said] == [text for turn in TALK[0] for text in turn]
    for line, dialogue in zip(lines, training_set(6, 1), strict=True):
        conversation = source.read(json.loads(line))
        targets = [m.content for m in conversation.messages if conversation.is_target(m)]
        assert targets == [turn.assistant for turn in dialogue.turns if turn.probe or turn.trained]


def test_conversations_are_read_as_preprocessing_reads_them(folder: Path) -> None:
    path = str(folder / "ordinary.jsonl")
    found = files.read_conversations([path], OPENAI, None, None)
    assert len(found) == len((folder / "ordinary.jsonl").read_text().splitlines())
    assert found[0].messages[0].role == "user"
    assert files.read_conversations([path], OPENAI, None, 2) == found[:2]


def test_a_row_that_is_no_conversation_is_named(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(good) + "\n" + json.dumps({"messages": []}) + "\n")
    with pytest.raises(DataError, match=r"talk\.jsonl:2: messages"):
        files.read_conversations([str(path)], OPENAI, None, None)
    with pytest.raises(DataError, match="no such file"):
        files.read_conversations([str(tmp_path / "absent.jsonl")], OPENAI, None, None)
    with pytest.raises(ConfigError, match="plain texts"):
        files.read_conversations([str(path)], "GeneralPretrainHandler", None, None)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"family": "mixed"}, "family is 'mixed'"),
        ({"family": None}, "family is None"),
        ({"distance": "2"}, "distance is '2'"),
        ({"probes": []}, "no probes"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last has no reply"),
        ({"messages": [{"role": "user", "content": 1}] * 2}, r"messages\[0\]"),
        ({"probes": [{"message": 0, "answers": ["a"], "rule": "holds", "expected": [],
                      "forbidden": []}]}, "message 0 is no reply"),
        ({"probes": [{"message": 1, "answers": ["a"], "rule": "odd", "expected": [],
                      "forbidden": []}]}, "rule is 'odd'"),
        ({"probes": [{"message": 1, "answers": [], "rule": "holds", "expected": [],
                      "forbidden": []}]}, "lists of texts"),
    ],
)  # fmt: skip
def test_lines_of_the_wrong_shape_are_named(folder: Path, change: dict, message: str) -> None:
    first, *rest = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "test.jsonl").write_text("\n".join([*rest, json.dumps(json.loads(first) | change)]))
    with pytest.raises(DataError, match=rf"test\.jsonl:16: .*{message}"):
        files.read_dialogues(folder / "test.jsonl")


@pytest.mark.parametrize(
    "content,message",
    [(b"", "no lines"), (b"{", r":1: not JSON"), (b"[1]", ":1: a list"),
     (b"\xff\xfe", "not a text"),
     (b'{"family": "fact"}', ":1: no 'distance'")],
)  # fmt: skip
def test_files_that_are_no_dialogues_are_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        files.read_dialogues(path)
    with pytest.raises(DataError, match="cannot be read"):
        files.read_dialogues(tmp_path / "absent.jsonl")


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(DataError, match="is a file"):
        files.write(tmp_path / "x", train=[], talk=[], test=[])


def test_results_to_compare_with(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"load": "a", "template": "chatml"}')
    assert files.read_result(path)["load"] == "a"
    for text in ("[]", "{}", "{"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"--compare .*r\.json"):
            files.read_result(path)
    with pytest.raises(DataError, match="cannot be read"):
        files.read_result(tmp_path / "absent.json")


@pytest.mark.parametrize("data", [["a", "b"], {"user": ["a", "b"]}])
def test_scripts(tmp_path: Path, data: object) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(data))
    assert files.read_script(path) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[" "]', '{"user": "a"}'])
def test_wrong_scripts_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "script.json"
    path.write_text(text)
    with pytest.raises(DataError, match="script.json"):
        files.read_script(path)
    with pytest.raises(DataError, match="cannot be read"):
        files.read_script(tmp_path / "absent.json")
