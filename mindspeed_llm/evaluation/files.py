"""Owns the files of an evaluation: dialogues of mt-recall as JSON lines, a user's script. It knows
neither models nor scores.

A line has `messages` as OpenAI writes them, so that it can be trained on: a message with `loss`
false is not a target. `family`, `distance`, `distractors` and `probes` are what scoring needs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_llm.config.data import PLAIN_TEXT
from mindspeed_llm.data.inputs import find_inputs, unpack
from mindspeed_llm.data.messages import Conversation, RowError
from mindspeed_llm.data.readers import ChunkReader, line_numbers, split_chunks
from mindspeed_llm.data.sources import make_source
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.evaluation.dialogues import FAMILIES, Dialogue, Probe, Turn
from mindspeed_llm.evaluation.phrases import GUIDE_TURNS
from mindspeed_llm.evaluation.small_talk import ORDINARY, PRACTICE

_SHORT = "Answer in one or two sentences."
_RULES = ("holds", "count", "opens", "unknown")


def row(dialogue: Dialogue) -> dict[str, Any]:
    """One line's content; targets of training: replies to probes, and those that are `trained`."""
    messages: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []
    for turn in dialogue.turns:
        messages.append({"role": "user", "content": turn.user})
        if turn.probe is not None:
            probes.append({"message": len(messages), **dataclasses.asdict(turn.probe)})
        messages.append({"role": "assistant", "content": turn.assistant,
                         "loss": turn.trained or turn.probe is not None})  # fmt: skip
    return {"messages": messages, "family": dialogue.family, "distance": dialogue.distance,
            "distractors": dialogue.distractors, "probes": probes}  # fmt: skip


def talk_rows(talk: Iterable[Sequence[tuple[str, str]]]) -> list[dict[str, Any]]:
    """Lines of (user, assistant) turns that are all trained."""
    return [
        {"messages": [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]}
        for turns in talk
    ]  # fmt: skip


def write(
    output: Path, *, train: Sequence[Dialogue], talk: Iterable[Sequence[tuple[str, str]]],
    test: Sequence[Dialogue],
) -> dict[str, int]:  # fmt: skip
    """Write train.jsonl (of `train` and `talk`), test.jsonl, ordinary.jsonl, prompts.jsonl and
    guide.json.

    ordinary.jsonl is talk that needs no memory; prompts.jsonl asks for more of it, for the model
    itself to answer; guide.json is the user's side of the guide's conversation. A file is complete
    or absent.

    Returns:
        file name -> number of dialogues.

    Raises:
        DataError: `output` is a file.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file; expected a directory to write into")
    output.mkdir(parents=True, exist_ok=True)
    prompts = [{"messages": [{"role": "user", "content": f"{user} {_SHORT}"}]} for user in PRACTICE]
    lines = {
        "train.jsonl": [*(row(dialogue) for dialogue in train), *talk_rows(talk)],
        "test.jsonl": [row(dialogue) for dialogue in test],
        "ordinary.jsonl": talk_rows(ORDINARY),
        "prompts.jsonl": prompts,
    }
    for name, rows in lines.items():
        _replace(output / name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    _replace(output / "guide.json", json.dumps({"user": list(GUIDE_TURNS)}, indent=2) + "\n")
    return {**{name: len(rows) for name, rows in lines.items()}, "guide.json": 1}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_dialogues(path: Path) -> list[Dialogue]:
    """Dialogues with probes, as `mindspeed-llm dialogues` writes them.

    Raises:
        DataError: no such file, not JSON lines, or a line of another shape; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}; `mindspeed-llm dialogues "
                        "--output DIR` writes test.jsonl") from err  # fmt: skip
    except UnicodeDecodeError as err:
        raise DataError(f"{path}: not a text file; expected test.jsonl of `mindspeed-llm "
                        "dialogues`") from err  # fmt: skip
    found = [
        _dialogue(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise DataError(f"{path}: no lines; nothing can be scored")
    return found


def _dialogue(where: str, line: str) -> Dialogue:
    try:
        value = json.loads(line)
    except ValueError as err:
        raise DataError(f"{where}: not JSON: {err}") from err
    try:
        return _read(value)
    except (KeyError, TypeError, ValueError) as err:
        reason = f"no {err}" if isinstance(err, KeyError) else str(err)
        raise DataError(f"{where}: {reason}; expected a line of test.jsonl of `mindspeed-llm "
                        "dialogues`") from err  # fmt: skip


def _read(value: Mapping[str, Any]) -> Dialogue:
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} where an object is due")
    family, distance, messages = value["family"], value["distance"], value["messages"]
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; there are {', '.join(FAMILIES)}")
    if not isinstance(distance, int) or distance < 1:
        raise ValueError(f"distance is {distance!r}; expected a number of turns")
    probes = {probe["message"]: _probe(probe) for probe in value["probes"]}
    if not probes or len(messages) % 2:
        raise ValueError("no probes" if not probes else "messages: the last has no reply")
    for at, message in enumerate(messages):
        due = ("user", "assistant")[at % 2]
        if message["role"] != due or not isinstance(message["content"], str):
            raise ValueError(f"messages[{at}]: expected a text of the {due}")
    outside = [at for at in probes if at not in range(1, len(messages), 2)]
    if outside:
        raise ValueError(f"probes: message {outside[0]} is no reply")
    turns = tuple(
        Turn(user=messages[at - 1]["content"], assistant=messages[at]["content"],
             probe=probes.get(at))
        for at in range(1, len(messages), 2)
    )  # fmt: skip
    return Dialogue(turns=turns, family=family, distance=distance,
                    distractors=int(value["distractors"]))  # fmt: skip


def _probe(value: Mapping[str, Any]) -> Probe:
    texts = {name: tuple(value[name]) for name in ("answers", "expected", "forbidden")}
    if not texts["answers"] or not all(isinstance(t, str) for some in texts.values() for t in some):
        raise ValueError("probes: answers, expected and forbidden are lists of texts")
    if value["rule"] not in _RULES:
        raise ValueError(f"probes: rule is {value['rule']!r}; there are {', '.join(_RULES)}")
    return Probe(rule=value["rule"], **texts)


def read_conversations(
    inputs: Sequence[str], handler: str, map_keys: Mapping[str, Any] | None, most: int | None
) -> list[Conversation]:
    """The first `most` conversations of files, as `preprocess_data.py` reads them.

    Raises:
        ConfigError: no such handler, or one whose rows are no conversations.
        DataError: a file that cannot be read, a row that is no conversation, or none at all.
    """
    source = make_source(handler, map_keys)
    if handler == PLAIN_TEXT:
        raise ConfigError(f"--handler-name {handler}: plain texts have no turns to evaluate")
    found: list[Conversation] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, packed in enumerate(find_inputs(inputs)):
            file = unpack(packed, Path(folder), number)
            reader = ChunkReader(source.columns)
            for position, value in (pair for c in split_chunks(file) for pair in reader.read(c)):
                if len(found) == most:
                    return found
                try:
                    if isinstance(value, RowError):
                        raise value
                    conversation = source.read(value)
                    conversation.check_trainable()
                except RowError as err:
                    line = line_numbers(file, [position])[position]
                    raise DataError(f"{packed.path}:{line}: {err}; mend or leave out the "
                                    "row") from err  # fmt: skip
                found.append(conversation)
    if not found:
        raise DataError(f"--input {' '.join(inputs)}: no rows")
    return found


def read_result(path: Path) -> dict[str, Any]:
    """The --json file of an earlier evaluation.

    Raises:
        DataError: not JSON, or not such a file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise DataError(f"--compare {path}: cannot be read: {err.strerror}") from err
    except ValueError as err:
        raise DataError(f"--compare {path}: not JSON: {err}") from err
    if not isinstance(found, dict) or "load" not in found or "template" not in found:
        raise DataError(f"--compare {path}: expected a --json file of `mindspeed-llm evaluate`, or "
                        "a checkpoint directory")  # fmt: skip
    return found


def read_script(path: Path) -> list[str]:
    """The user's turns in a JSON file: a list of texts, or {"user": [texts]}.

    Raises:
        DataError: no such file, not JSON, or of another shape.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise DataError(f"--replay {path}: cannot be read: {err.strerror}") from err
    except ValueError as err:
        raise DataError(f"--replay {path}: not JSON: {err}") from err
    turns = found["user"] if isinstance(found, dict) and "user" in found else found
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, str) and turn.strip() for turn in turns)
    ):
        raise DataError(
            f'--replay {path}: expected the user\'s turns, ["...", "..."] or {{"user": [...]}}'
        )
    return turns
