"""Owns version facts: which megatron-core is installed and supported, and comparing; imports none
of it."""

from __future__ import annotations

import importlib.machinery
import re
from pathlib import Path

BELOW = "<0.20"  # the first that nobody has tested; setup.py says the same
SUPPORTED = f">=0.12.3,{BELOW}"
_PACKAGE_INFO = re.compile(r"^(MAJOR|MINOR|PATCH)\s*=\s*(\d+)", re.MULTILINE)
_COMPARISON = re.compile(r"^(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)$")


def mcore_version() -> str | None:
    """Version of the megatron-core that `import megatron.core` would give; None without one.

    Read from the source tree that comes first on sys.path, not from package metadata: a checkout
    in front of an installed wheel has no metadata of its own.
    """
    finder = importlib.machinery.PathFinder
    package = finder.find_spec("megatron")
    if package is None or package.submodule_search_locations is None:
        return None
    core = finder.find_spec("megatron.core", list(package.submodule_search_locations))
    if core is None or core.origin is None:
        return None
    info = Path(core.origin).with_name("package_info.py")
    if not info.is_file():
        return None
    found = dict(_PACKAGE_INFO.findall(info.read_text(encoding="utf-8")))
    return ".".join(found[part] for part in ("MAJOR", "MINOR", "PATCH"))


def has_package(name: str) -> bool:
    """Whether there is a package `name` (`megatron.training`) to import; imports nothing."""
    parent, _, child = name.partition(".")
    spec = importlib.machinery.PathFinder.find_spec(parent)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return any((Path(place) / child).is_dir() for place in places)


def matches(version: str, comparisons: str) -> bool:
    """True when `version` (digits and dots) meets all comma-separated `comparisons`."""
    return all(_compare(_numbers(version), part.strip()) for part in comparisons.split(","))


def _compare(version: tuple[int, ...], comparison: str) -> bool:
    match = _COMPARISON.match(comparison)
    if match is None:
        raise ValueError(f"version comparison {comparison!r}; expected for example >=0.14")
    operator, bound = match[1], _numbers(match[2])
    return {
        ">=": version >= bound,
        "<=": version <= bound,
        "==": version == bound,
        "!=": version != bound,
        ">": version > bound,
        "<": version < bound,
    }[operator]


def _numbers(version: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in version.split("."))
    return numbers + (0,) * (3 - len(numbers))
