"""Owns the post-import hook: calls back after chosen modules were imported; knows no patch."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


class _Loader(importlib.abc.Loader):
    """Runs the real loader, takes itself out of the module again, and calls back."""

    def __init__(self, inner: importlib.abc.Loader, after: Callable[[ModuleType], None]) -> None:
        self._inner, self._after = inner, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # inspect, pickle and importlib.resources look at the loader: they must see the real one
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        self._after(module)


class PostImport(importlib.abc.MetaPathFinder):
    """Calls `after(module)` right after each module for which `wanted(name)` was executed."""

    def __init__(self, wanted: Callable[[str], bool], after: Callable[[ModuleType], None]) -> None:
        self._wanted, self._after = wanted, after

    def arm(self) -> None:
        """Start watching; safe to call twice."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def disarm(self) -> None:
        """Stop watching; modules imported so far stay as they are."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Ask the other finders, and put our loader in front of what they found."""
        if not self._wanted(fullname):
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self._after)
                return spec
        return None
