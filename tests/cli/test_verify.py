"""`mindspeed-llm verify`, and what the commands that export do with it."""

import pytest

from mindspeed_llm.cli import verify
from mindspeed_llm.cli.main import run
from mindspeed_llm.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def model(tiny_chat_model):
    return tiny_chat_model("llama")


def test_the_same_model_in_a_process_of_its_own(model, capfd, monkeypatch):
    monkeypatch.setenv("RANK", "3")  # as under torchrun: the comparison is no rank of it
    verify.checker(model, model)(model)
    assert "the same model: " in capfd.readouterr().out


def test_another_model_is_taken_back(model, tiny_chat_model):
    with pytest.raises(CheckpointError, match="the export was taken back: .*gemma2"):
        verify.checker(model, model)(tiny_chat_model("gemma2"))


def test_too_little_memory_is_said_before(model, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "_MEMORY", tmp_path / "meminfo")
    verify.checker(model, model)  # a system that does not say
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8 kB\n")
    with pytest.raises(ConfigError, match="0.0 are free; .*--no-verify"):
        verify.checker(model, model)


def test_flags(capsys, tmp_path):
    assert run(verify.main, ["--load", str(tmp_path), "--hf-dir", str(tmp_path / "no")]) == 2
    assert "--hf-dir" in capsys.readouterr().err
