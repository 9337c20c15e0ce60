"""Owns the view of the source tree that the house rules are checked on; knows no rule itself."""

import ast
import dataclasses
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIMS = ("preprocess_data.py", "convert_ckpt.py", "posttrain_gpt.py", "inference.py",
         "evaluation.py")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """One Python file: `path` relative to the root, dotted `name`, text and syntax tree."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        """`data` of mindspeed_llm.data.packing, "" of mindspeed_llm itself."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Every function and method, nested ones too."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]


def _read(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    relative = path.relative_to(ROOT)
    parts = list(relative.with_suffix("").parts)
    if parts[0] == "patches":
        parts = ["mindspeed_llm", *parts]
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return Source(relative, ".".join(parts), text, ast.parse(text, filename=str(relative)))


def _below(folder: str) -> list[Path]:
    """Python files below `folder`; the link mindspeed_llm/patches is not followed."""
    found = []
    for directory, _, files in os.walk(ROOT / folder, followlinks=False):
        found += [Path(directory) / name for name in files if name.endswith(".py")]
    return sorted(found)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def modules() -> list[Source]:
    """What is installed: mindspeed_llm and patches (under the name mindspeed_llm.patches)."""
    found = [_read(path) for path in _below("mindspeed_llm") + _below("patches")]
    # The same files, counted another way: through the link that the package installs.
    linked = sum(
        name.endswith(".py")
        for _, _, files in os.walk(ROOT / "mindspeed_llm", followlinks=True)
        for name in files
    )
    assert len(found) == linked > 20
    assert len({source.name for source in found}) == len(found)
    return found


@pytest.fixture(scope="session")
def all_sources(modules: list[Source]) -> list[Source]:
    """Every Python file of the project: the package, its tests, benchmarks and scripts."""
    scripts = [ROOT / name for name in (*SHIMS, "setup.py")]
    others = _below("tests") + _below("benchmarks") + _below("examples") + scripts
    return modules + [_read(path) for path in others]
