"""A file of conversations as --data-path is prepared once for all ranks and runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_llm.cli.train import read_settings
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.training.raw import with_prepared_data

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"instruction": f"Number {n}?", "input": "", "output": f"It is {n}."} for n in range(20)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in" / "dialogues.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def resolved(flags, *more):
    settings, _ = read_settings([*flags, *(str(part) for part in more)])
    return with_prepared_data(settings).data


def test_a_raw_file_becomes_a_data_set_beside_it(flags, source, tmp_path):
    data = resolved(flags, "--data-path", source, "--prompt-type", "gemma")
    (prefix,) = data.prefixes
    assert prefix.startswith(str(tmp_path / "in" / ".mindspeed_llm_cache" / "dialogues-"))
    again = resolved(flags, "--data-path", source, "--prompt-type", "gemma")
    assert again.prefixes == data.prefixes


def test_raw_files_and_data_sets_are_blended(flags, source, material, tmp_path):
    data = resolved(flags, "--data-path", "0.3", source, "0.7", material["data"],
                    "--prompt-type", "gemma", "--data-cache-path", tmp_path / "kept")  # fmt: skip
    assert data.weights is not None and data.prefixes[1] == material["data"]
    assert data.prefixes[0].startswith(str(tmp_path / "kept" / "dialogues-"))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ([], ConfigError, "dialogues.jsonl holds conversations .* --prompt-type"),
        (["--prompt-type", "gemma", "--load", "/nowhere/at"], CheckpointError, "/nowhere/at"),
        (["--prompt-type", "gemma", "--hf-chat-template"], ConfigError, "two templates"),
    ],
)
def test_what_is_missing_is_named(flags, source, changes, kind, words):
    with pytest.raises(kind, match=words):
        resolved(flags, "--data-path", source, *changes)


def test_the_directory_of_a_data_set_is_told_from_conversations(flags, material):
    folder = Path(material["data"]).parent
    with pytest.raises(ConfigError, match=f"give the prefix of one: {material['data']}$"):
        resolved(flags, "--data-path", folder, "--prompt-type", "gemma")


@pytest.mark.parametrize(
    "idle",
    [["--handler-name", "AlpacaStyleInstructionHandler"], ["--map-keys", "{}"],
     ["--data-cache-path", "x"]],
)  # fmt: skip
def test_settings_of_preparing_are_refused_without_effect(flags, idle):
    with pytest.raises(ConfigError, match=f"{idle[0]} is for preparing conversations"):
        resolved(flags, *idle)
    assert resolved(flags)


def ask(*asked):
    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.data import cache
    from mindspeed_llm.errors import UserError
    from mindspeed_llm.training.raw import with_prepared_data

    made, real, answers = [], cache.prepare, []
    cache.prepare = lambda *a: made.append(1) or real(*a)
    for flags in asked:
        try:
            answers.append(with_prepared_data(read_settings(flags)[0]).data.prefixes)
        except UserError as error:
            answers.append(str(error))
    return [*answers, len(made)]


def test_ranks_share_one_preparation_and_its_error(run_ranks, flags, source, tmp_path):
    bad = tmp_path / "in" / "bad.jsonl"
    bad.write_text('{"instruction": "no answer"}\n' * 4)
    asked = [[*flags, "--data-path", str(path), "--prompt-type", "gemma"] for path in (source, bad)]
    first, second = run_ranks(2, ask, *asked)
    assert first[0] == second[0] and "dialogues-" in first[0][0]
    assert first[2] + second[2] == 1 + 2  # the good file once, the bad one fails on each rank
    assert all("bad.jsonl" in error for error in (first[1], second[1]))


def test_changed_rows_are_trained_in_the_next_run(flags, source, tmp_path):
    """The whole command: content decides, not the name; what was prepared before stays."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "posttrain_gpt.py"), *flags,
               "--data-path", source, "--prompt-type", "gemma", "--train-iters", "1",
               "--seq-length", "64", "--log-dir", str(tmp_path / "log")]  # fmt: skip
    before = resolved(flags, "--data-path", source, "--prompt-type", "gemma").prefixes
    text = Path(source).read_text().replace("It is", "Xx is")
    Path(source).write_text(text)
    done = subprocess.run(
        command, env={**os.environ, "DEVICE": "cpu"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log" / "train.jsonl").read_text().count("\n") == 1
    after = resolved(flags, "--data-path", source, "--prompt-type", "gemma").prefixes
    kept = sorted(Path(source).parent.glob(".mindspeed_llm_cache/*_packed_manifest.json"))
    assert before != after and {str(p) for p in kept} == {
        f"{p}_packed_manifest.json" for p in (*before, *after)}  # fmt: skip
