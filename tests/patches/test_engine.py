"""Tests of mindspeed_llm.patches.engine, on a small package in the target's place."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from mindspeed_llm.errors import PatchError
from mindspeed_llm.patches import engine as module
from mindspeed_llm.patches.engine import Engine
from mindspeed_llm.patches.record import Patch

CODE = """
import math
flag = False
borrowed = math.sqrt
def double(x, scale=2):
    return x * scale
def neighbour(x):
    return x
class Thing:
    def method(self, x):
        return x
    @staticmethod
    def still(x):
        return x
    @classmethod
    def kind(cls, x):
        return cls, x
class Child(Thing):
    pass
"""
ADAPTERS = types.ModuleType("engine_adapters")
exec(
    """
import functools
def triple(x, scale=3):
    return x * scale
def wrong_name(y, scale=3):
    return y
def too_few(x):
    return x
def plus_one(f):
    return functools.wraps(f)(lambda *args, **kwargs: f(*args, **kwargs) + 1)
def times_ten(f):
    return functools.wraps(f)(lambda *args, **kwargs: f(*args, **kwargs) * 10)
def second_plus_one(f):
    return functools.wraps(f)(lambda *args, **kwargs: (args[0], f(*args)[1] + 1))
def yes(original):
    return True
def look_alike(original):
    import types
    fake = types.ModuleType("math")
    fake.pi = 3
    return fake
def switch():
    CALLS.append(1)
CALLS = []
""",
    vars(ADAPTERS),
)


def entry(path="double", adapter="triple", kind="replace", **changes):
    target = path if ":" in path else f"patchme.one:{path}"
    return Patch(target=target, adapter=f"engine_adapters:{adapter}", kind=kind, why="w",
                 upstream="u", remove_when="r", **changes)  # fmt: skip


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(*patches)` -> an engine over a fresh package `patchme`, reverted at the end."""
    (tmp_path / "patchme").mkdir()
    (tmp_path / "patchme" / "__init__.py").write_text("")
    (tmp_path / "patchme" / "one.py").write_text(CODE)
    (tmp_path / "patchme" / "two.py").write_text("from patchme.one import double as renamed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "engine_adapters", ADAPTERS)
    engines = []

    def make(*patches, version="0.16.1"):
        engines.append(Engine(patches, version))
        return engines[-1]

    yield make
    for engine in engines:
        engine.revert()
    for name in [n for n in sys.modules if n.split(".")[0] == "patchme"]:
        del sys.modules[name]


def load(name="one"):
    return importlib.import_module(f"patchme.{name}")


def states(report):
    return [outcome.state for outcome in report.outcomes]


def test_nothing_is_imported_to_be_patched(start):
    engine = start(entry())
    assert states(engine.apply("cpu")) == ["armed"]
    assert "patchme" not in sys.modules
    assert load("two").renamed(2) == 6
    assert states(engine.report()) == ["applied"]


def test_modules_that_are_there_are_patched_with_renamed_aliases(start):
    two = load("two")
    report = start(entry()).apply("cpu")
    assert two.renamed(2) == load().double(2) == 6
    assert report.outcomes[0].aliases == ("patchme.two.renamed",)
    assert ADAPTERS.triple(1) == 3


def test_twice_changes_nothing(start):
    engine = start(entry("double", "plus_one", "wrap"))
    first = engine.apply("cpu")
    function = load().double
    assert engine.apply("cpu").outcomes[0].patch == first.outcomes[0].patch
    assert load().double is function and function(2) == 5


def test_revert_puts_the_same_objects_back(start):
    one = load()
    before = dict(vars(one)), dict(vars(one.Thing))
    engine = start(entry(), entry("Thing.method", "plus_one", "wrap"), entry("flag", "yes", "wrap"))
    engine.apply("cpu")
    later = load("two")
    assert (one.flag, one.Thing().method(1), later.renamed(1)) == (True, 2, 3)
    engine.revert()
    engine.revert()
    assert (dict(vars(one)), dict(vars(one.Thing))) == before
    assert later.renamed is one.double
    assert states(engine.report()) == ["skipped"] * 3


def test_after_revert_later_imports_are_left_alone(start):
    engine = start(entry())
    engine.apply("cpu")
    engine.revert()
    assert load().double(2) == 4


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_order_in_the_register_does_not_count(start, order):
    patches = [
        entry(),
        entry("double", "plus_one", "wrap", priority=10),
        entry("double", "times_ten", "wrap", priority=20),
    ]
    start(*[patches[i] for i in order]).apply("cpu")
    assert load().double(1) == (1 * 3 + 1) * 10


def test_neighbours_stay(start):
    one = load()
    neighbour, thing, borrowed = one.neighbour, one.Thing, one.borrowed
    start(entry()).apply("cpu")
    assert (one.neighbour, one.Thing, one.borrowed) == (neighbour, thing, borrowed)


def test_static_and_class_methods_keep_their_kind(start):
    start(
        entry("Thing.still", "plus_one", "wrap"), entry("Thing.kind", "second_plus_one", "wrap")
    ).apply("cpu")
    one = load()
    assert one.Thing.still(1) == one.Thing().still(1) == 2
    assert one.Child.kind(1) == (one.Child, 2)


def test_an_inherited_method_is_taken_away_again(start):
    one = load()
    engine = start(entry("Child.method", "plus_one", "wrap"))
    engine.apply("cpu")
    assert (one.Child().method(1), one.Thing().method(1)) == (2, 1)
    engine.revert()
    assert "method" not in vars(one.Child) and one.Child().method(1) == 1


def test_rebind_reaches_objects_that_identity_cannot_tell(start):
    load()
    start(entry("flag", "yes", "wrap", rebind=("patchme.two:renamed",))).apply("cpu")
    assert load().flag is True and load("two").renamed is True


def test_what_a_module_only_borrows_stays_elsewhere(start):
    import math

    sqrt = math.sqrt
    start(entry("borrowed", "yes", "wrap")).apply("cpu")
    assert load().borrowed is True and math.sqrt is sqrt


def test_revert_finds_what_was_taken_of_a_borrowed_name_meanwhile(start):
    engine = start(entry("borrowed", "triple"))
    engine.apply("cpu")
    one = load()
    taker = types.ModuleType("patchme.taker")
    taker.taken = one.borrowed  # as `from patchme.one import borrowed` in a later import
    sys.modules["patchme.taker"] = taker
    assert taker.taken is ADAPTERS.triple
    engine.revert()
    assert taker.taken is one.borrowed and one.borrowed is not ADAPTERS.triple


def test_inject_into_modules_below_a_package_only(start):
    import math

    load()
    engine = start(entry("patchme.*:math", "look_alike", "inject"))
    engine.apply("cpu")
    assert load().math.pi == 3 and sys.modules["math"] is math and math.pi > 3.1
    assert engine.report().outcomes[0].reason == "1 modules"
    engine.revert()
    assert load().math is math


def test_switch_is_called_once(start):
    ADAPTERS.CALLS.clear()
    engine = start(entry("patchme.*:math", "switch", "switch", devices=("npu",)))
    assert states(engine.apply("cpu")) == ["skipped"] and ADAPTERS.CALLS == []
    assert states(engine.apply("npu")) == states(engine.apply("npu")) == ["applied"]
    assert ADAPTERS.CALLS == [1]


def test_skipped_with_the_reason(start):
    engine = start(entry(devices=("npu",)), entry("neighbour", mcore="<0.15"))
    reasons = [outcome.reason for outcome in engine.apply("cpu").outcomes]
    assert reasons == ["not for cpu", "not for megatron-core 0.16.1"]
    assert load().double(2) == 4


def test_a_version_that_no_patch_is_for_is_refused(start):
    engine = start(entry(mcore="<0.15"), entry("neighbour", mcore="<0.16"))
    with pytest.raises(PatchError, match=r"megatron-core 0\.16\.1 is not supported.*install"):
        engine.apply("cpu")
    assert load().double(2) == 4 and states(engine.report()) == ["skipped", "skipped"]


@pytest.mark.parametrize("path", ["gone", "Thing.gone", "Gone.method"])
@pytest.mark.parametrize("late", [True, False])
def test_a_missing_target_is_an_error_that_names_symbol_and_version(start, path, late):
    engine = start(entry(path), entry())
    words = f"patchme.one:{path} does not exist in megatron-core 0.16.1"
    if late:
        load()
        with pytest.raises(PatchError, match=words):
            engine.apply("cpu")
        assert load().double(2) == 4
        return
    engine.apply("cpu")
    with pytest.raises(PatchError, match=words):
        load()


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (entry(adapter="wrong_name"), "does not take x"),
        (entry(adapter="too_few"), "does not take scale"),
        (entry(adapter="plus_one", kind="wrap", needs=("bias",)), "no parameter bias"),
    ],
)
def test_an_adapter_that_does_not_fit(start, patch, words):
    load()
    with pytest.raises(PatchError, match=f"patchme.one:double of megatron-core 0.16.1: .*{words}"):
        start(patch).apply("cpu")


def test_two_replacements_of_one_symbol(start):
    with pytest.raises(PatchError, match="patchme.one:double is replaced by .* and by"):
        start(entry(), entry(adapter="too_few")).apply("cpu")


def test_another_device_starts_from_the_pristine_objects(start):
    engine = start(entry(devices=("cpu",)), entry("double", "plus_one", "wrap", devices=("npu",)))
    engine.apply("cpu")
    assert load().double(2) == 6
    engine.apply("npu")
    assert load().double(2) == 5


def test_a_reloaded_module_is_patched_again(start):
    start(entry()).apply("cpu")
    importlib.reload(load())
    assert load().double(2) == 6


def test_what_someone_else_changed_since_is_left(start, caplog):
    engine = start(entry())
    engine.apply("cpu")
    theirs = load().double = lambda x: 0
    engine.revert()
    assert load().double is theirs


def test_misfit_of_variadic_originals():
    assert module.misfit(lambda *args, **kwargs: 0, lambda a, *args, **kwargs: 0) is not None
    assert module.misfit(lambda a, *args: 0, lambda a, *args, **kwargs: 0) is None
    assert module.misfit(1, lambda: 0) is None


def test_mindspeeds_engine_beside_ours_is_refused(monkeypatch):
    package = types.ModuleType("mindspeed")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "mindspeed", package)
    engine = Engine([], version="0.16.1")
    engine.apply("cpu")
    try:
        with pytest.raises(PatchError, match="is imported after mindspeed_llm.megatron_adaptor"):
            importlib.import_module("mindspeed.megatron_adaptor")
    finally:
        engine.revert()
    monkeypatch.setitem(sys.modules, "mindspeed.megatron_adaptor", types.ModuleType("m"))
    with pytest.raises(PatchError, match="was imported before"):
        engine.apply("cpu")
