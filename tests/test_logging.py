"""Holds that records come once, on standard error, and that only rank 0 chats."""

import logging

import pytest

from mindspeed_llm import logging as log


@pytest.fixture
def logger(monkeypatch):
    """The library's logger without handlers, put back afterwards."""
    logger = logging.getLogger("mindspeed_llm")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    return logger


def test_rank_is_torchruns(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert log.rank() == 0
    monkeypatch.setenv("RANK", "3")
    assert log.rank() == 3


def test_names_lie_below_the_library():
    assert log.get_logger("mindspeed_llm.data.writer").name == "mindspeed_llm.data.writer"
    assert log.get_logger("__main__").name == "mindspeed_llm.__main__"


def test_configure_twice_speaks_once(logger, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    log.configure()
    log.configure()
    log.get_logger("mindspeed_llm.x").info("saved")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "I saved\n")


def test_a_handler_of_somebody_else_does_not_silence_ours(logger, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    logger.addHandler(logging.NullHandler())
    log.configure()
    log.get_logger("mindspeed_llm.x").info("saved")
    assert capsys.readouterr().err == "I saved\n"


def test_other_ranks_only_warn_and_say_who_they_are(logger, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    log.configure()
    log.get_logger("mindspeed_llm.x").info("saved")
    log.get_logger("mindspeed_llm.x").warning("slow disk")
    assert capsys.readouterr().err == "[rank 2] W slow disk\n"
