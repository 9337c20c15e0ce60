"""Holds what every user-facing error promises to the command line."""

import inspect

import pytest

from mindspeed_llm import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def test_every_kind_was_collected():
    assert len(KINDS) >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_user_errors_with_a_failing_exit_code(kind):
    err = kind("--load-dir is 'x'; expected a directory")
    assert isinstance(err, errors.UserError)
    assert err.exit_code not in (0, 1)  # 1 is what Python's own traceback leaves with
    assert str(err) == "--load-dir is 'x'; expected a directory"


def test_programming_errors_are_not_caught_as_user_errors():
    for kind in (AssertionError, ValueError, KeyError, RuntimeError):
        assert not issubclass(kind, errors.UserError)
