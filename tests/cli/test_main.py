"""Holds the command table, and that a user's mistake is one message and an exit code."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mindspeed_llm import __version__
from mindspeed_llm.cli import main as cli
from mindspeed_llm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_no_argument_lists_every_command(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert len(cli.COMMANDS) >= 10
    assert [name for name in cli.COMMANDS if name not in printed] == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_module_and_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    assert "usage" in capsys.readouterr().out.lower()


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_unknown_command_is_refused(capsys):
    assert cli.main(["prepocess"]) == 2
    assert "unknown command 'prepocess'" in capsys.readouterr().err


def test_a_users_mistake_is_one_paragraph(capsys, monkeypatch):
    def wrong(argv):
        raise ConfigError(f"--tp is {argv[0]}; expected 1 or more")

    monkeypatch.delenv("RANK", raising=False)
    assert cli.run(wrong, ["0"]) == 2
    assert capsys.readouterr().err == "error: --tp is 0; expected 1 or more\n"
    monkeypatch.setenv("RANK", "3")
    cli.run(wrong, ["0"])
    assert capsys.readouterr().err.startswith("[rank 3] error: ")


def test_a_programming_error_keeps_its_traceback():
    def broken(argv):
        raise KeyError("oops")

    with pytest.raises(KeyError):
        cli.run(broken, [])


def test_only_the_known_warnings_are_silent():
    def warning(argv):
        warnings.warn("Transformer Engine and Apex are not installed. Falling back", stacklevel=1)
        warnings.warn("Failed to create unified memory mempool.", stacklevel=1)
        warnings.warn("gradients are not finite", stacklevel=1)
        return 0

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        cli.run(warning, [])
    assert [str(warning.message) for warning in heard] == ["gradients are not finite"]


def test_only_the_known_log_line_is_silent(caplog):
    def logging_command(argv):
        logger = logging.getLogger("megatron.core.utils")
        logger.warning("%s has reached end of life. Please migrate.", "some_function")
        logger.warning("something is amiss")
        return 0

    cli.run(logging_command, [])
    assert [record.getMessage() for record in caplog.records] == ["something is amiss"]


def test_interrupt_leaves_like_a_shell(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    assert cli.run(interrupted, []) == 130


def test_chat_and_generate_preset_their_task(monkeypatch):
    seen = []
    module = type("module", (), {"main": staticmethod(lambda argv: seen.append(argv) or 0)})
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    cli.main(["chat", "--top-k", "1"])
    cli.main(["generate", "--task", "beam"])
    assert seen == [["--task", "chat", "--top-k", "1"], ["--task", "beam"]]


@pytest.mark.parametrize(
    "script",
    ["preprocess_data.py", "convert_ckpt.py", "posttrain_gpt.py", "inference.py", "evaluation.py"],
)
def test_the_guides_scripts_answer(script, tmp_path):
    done = subprocess.run([sys.executable, ROOT / script, "--no-such-flag"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_traceback():
    talk = (
        "import sys; from mindspeed_llm.cli.main import run\n"
        "def command(_):\n"
        "    while True: print('x' * 1000)\n"
        "sys.exit(run(command, []))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", talk], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.read(10)
    child.stdout.close()
    assert child.wait(100) == 141
    assert child.stderr.read() == b""


@pytest.mark.parametrize(
    "fault,said",
    [
        (
            PermissionError(13, "Permission denied", "/x/y"),
            "error: /x/y: Permission denied;",
        ),
        (OSError(28, "No space left on device"), "error: No space left on device; choose"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_error(fault, said, capsys):
    def command(_argv):
        raise fault

    assert cli.run(command, []) == 2
    assert capsys.readouterr().err.startswith(said)


def test_other_faults_of_the_system_keep_their_trace():
    def command(_argv):
        raise ConnectionError("a rank is gone")

    with pytest.raises(ConnectionError):
        cli.run(command, [])
