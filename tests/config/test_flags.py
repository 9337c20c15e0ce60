"""Tests of mindspeed_llm.config.flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mindspeed_llm.config.flags import flag_of, parse, setting
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class Places:
    """Where things lie"""

    load_dir: Path = setting(help="from where; 100 % needed")
    names: tuple[str, ...] = setting((), help="some names")
    steps: int | None = setting(None, help="how many", aliases=("--iters",))


@dataclass(frozen=True)
class Choices:
    """What to do"""

    rate: float = setting(0.5, help="how fast")
    kind: str = setting("a", help="which", choices=("a", "b"))
    loud: bool = setting(False, help="shout")
    save: bool = setting(True, help="do not save", negative="--dry-run")
    check: bool = setting(True, help="do not check")
    keys: dict | None = setting(None, help="a map")
    fused: bool | None = setting(None, help="three states")

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ConfigError(f"--rate {self.rate}")


def read(*argv, **options):
    return parse(["--load-dir", "x", *argv], Places, Choices, prog="tool", **options)


def test_defaults_and_types():
    places, choices = read()
    assert places == Places(load_dir=Path("x"))
    assert choices == Choices()


def test_values_of_every_type():
    places, choices = read("--names", "p", "q", "--steps", "3", "--rate", "2", "--kind", "b",
                           "--loud", "--dry-run", "--no-check", "--keys", '{"a": 1}',
                           "--fused", "false")  # fmt: skip
    assert (places.names, places.steps) == (("p", "q"), 3)
    assert choices == Choices(rate=2.0, kind="b", loud=True, save=False, check=False,
                              keys={"a": 1}, fused=False)  # fmt: skip
    assert read("--iters", "4")[0].steps == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rat", "1"], "unknown flag --rat; did you mean --rate"),
        (["stray"], "unexpected argument 'stray'"),
        (["--kind", "c"], "invalid choice"),
        (["--steps", "many"], "many"),
        (["--keys", "{"], "not JSON"),
        (["--keys", "[]"], "expected a JSON object"),
        (["--keys", '{"a": 1, "b": 2, "a": 3}'], "JSON with the key 'a' twice"),
        (["--keys", '{"b": {"x": 1, "x": 1}}'], "JSON with the key 'x' twice"),
        (["--keys", '{"a":' * 100_000], "nested too deeply"),
        (["--fused", "perhaps"], "expected true or false"),
        (["--rate", "0"], "--rate 0.0"),
        (["--old=1"], "--old cannot be honoured here: too old"),
    ],
)
def test_mistakes_are_config_errors(argv, message):
    with pytest.raises(ConfigError, match=message):
        read(*argv, refused={"--old": "too old"})


def test_a_required_flag_is_named():
    with pytest.raises(ConfigError, match="--load-dir"):
        parse([], Places, prog="tool")


def test_statements_of_other_launchers_are_accepted_because_they_are_true():
    assert read("--bf16-always", always={"--bf16-always": "bf16"})[1] == Choices()


def test_help_prints_and_leaves(capsys):
    with pytest.raises(SystemExit) as left:
        read("--help", always={"--flag-x": "x is so"})
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert "100 % needed" in text and "Where things lie" in text and "always so: x is so" in text


def test_names_and_mutable_defaults():
    assert flag_of("load_dir") == "--load-dir"
    with pytest.raises(TypeError):
        setting([], help="shared by all")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a command is about"""

    prefix: str = setting(help="where it lies", positional=True)
    rows: str = setting("0", help="which")


@pytest.mark.parametrize("argv", [["a/b", "--rows", "1"], ["--rows", "1", "a/b"]])
def test_a_positional_value_stands_anywhere(argv):
    assert parse(argv, Subject, prog="tool")[0] == Subject(prefix="a/b", rows="1")


def test_a_positional_value_is_required_once():
    with pytest.raises(ConfigError, match="PREFIX"):
        parse(["--rows", "1"], Subject, prog="tool")
    with pytest.raises(ConfigError, match="unexpected argument 'c'"):
        parse(["a/b", "c"], Subject, prog="tool")
