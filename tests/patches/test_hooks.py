"""Tests of mindspeed_llm.patches.hooks."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest

from mindspeed_llm.patches.hooks import PostImport


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "hooked"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("def f():\n    return 1\n")
    (folder / "two.py").write_text("from hooked import one\nvalue = one.f()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [n for n in sys.modules if n.split(".")[0] == "hooked"]:
        del sys.modules[name]


@pytest.fixture
def watch():
    hooks = []

    def start(wanted, after):
        hooks.append(PostImport(wanted, after))
        hooks[-1].arm()
        return hooks[-1]

    yield start
    for hook in hooks:
        hook.disarm()


def test_called_once_after_each_wanted_module(package, watch):
    seen = []
    hook = watch(lambda name: name == "hooked.one", lambda m: seen.append((m.__name__, m.f())))
    hook.arm()
    importlib.import_module("hooked.two")
    importlib.import_module("hooked.one")
    assert seen == [("hooked.one", 1)]
    assert sys.meta_path.count(hook) == 1


def test_a_change_is_seen_by_later_from_imports(package, watch):
    watch(lambda name: name == "hooked.one", lambda m: setattr(m, "f", lambda: 2))
    assert importlib.import_module("hooked.two").value == 2


def test_it_leaves_no_trace_in_the_module(package, watch):
    watch(lambda name: name.startswith("hooked"), lambda m: None)
    module = importlib.import_module("hooked.one")
    assert module.__loader__ is module.__spec__.loader
    assert type(module.__loader__).__module__ == "_frozen_importlib_external"
    assert inspect.getsource(module.f) == "def f():\n    return 1\n"


def test_an_error_of_the_callback_fails_the_import(package, watch):
    def fail(module):
        raise RuntimeError("does not fit")

    watch(lambda name: name == "hooked.one", fail)
    with pytest.raises(RuntimeError, match="does not fit"):
        importlib.import_module("hooked.two")
    assert "hooked.one" not in sys.modules


def test_missing_modules_stay_missing(watch):
    watch(lambda name: True, lambda m: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hooked_no_such_module")


def test_disarmed(package, watch):
    seen = []
    watch(lambda name: True, seen.append).disarm()
    importlib.import_module("hooked.one")
    assert seen == []
