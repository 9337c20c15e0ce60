"""Holds that every module has a test file of its name in the mirrored folder, and the reverse."""

import ast
from pathlib import Path

FREE = {"architecture", "contract", "distributed", "smoke", "virtual_npu"}


def has_code(source) -> bool:
    """An `__init__.py` that only documents and names things needs no test of its own."""
    for node in source.tree.body:
        documents = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom))
        refuses = isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)
        if not (documents or names or refuses):
            return True
    return False


def twin_of(source) -> Path:
    """mindspeed_llm/data/packing.py -> tests/data/test_packing.py"""
    parts = source.name.split(".")[1:]
    return Path("tests", *parts[:-1], f"test_{parts[-1]}.py")


def test_packages_hold_no_code_in_init(modules):
    inits = [source for source in modules if source.path.name == "__init__.py"]
    assert len(inits) >= 11
    assert [str(source.path) for source in inits if has_code(source)] == []


def test_every_module_has_its_test(modules, root):
    own = [source for source in modules if source.path.name != "__init__.py"]
    assert len(own) > 15
    missing = [f"{s.path}: {twin_of(s)}" for s in own if not (root / twin_of(s)).is_file()]
    assert missing == []


def test_every_test_has_its_module(modules, root):
    """tests/data/test_packing.py or test_packing_<aspect>.py stands for data/packing.py."""
    known = {twin_of(source) for source in modules if source.path.name != "__init__.py"}
    orphans = []
    for path in sorted(root.glob("tests/**/test_*.py")):
        relative = path.relative_to(root)
        if relative.parts[1] in FREE or relative in known:
            continue
        words = relative.stem.split("_")
        stems = ["_".join(words[:length]) for length in range(2, len(words))]
        if not any(relative.with_name(f"{stem}.py") in known for stem in stems):
            orphans.append(str(relative))
    assert orphans == []


def test_test_files_hold_tests(all_sources):
    files = [s for s in all_sources if s.path.parts[0] == "tests" and s.path.stem != "conftest"]
    empty = [
        str(source.path)
        for source in files
        if source.path.stem.startswith("test_")
        and not any(node.name.startswith("test_") for node in source.functions())
    ]
    assert files
    assert empty == []


def test_no_test_is_timed_or_left_out(all_sources):
    """Tests assert on results, never on seconds, and are not switched off for good."""
    wrong = [
        f"{source.path}:{node.lineno}"
        for source in all_sources
        if source.path.parts[0] == "tests"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("pytest.mark.skip", "pytest.mark.xfail")
    ]
    assert wrong == []
