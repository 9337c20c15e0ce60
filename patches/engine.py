"""Owns applying, reporting and reverting a register; knows no single patch.

Nothing is imported in order to be patched: modules that are there are patched at once, the others
when they are imported. Each symbol is rebuilt from its pristine object (the replacement first, then
the wraps by priority), so applying twice, or in another order, gives the same result.
Not reached by any rebinding: default argument values, closures, partials, module specs that were
built before, what a patched decorator has decorated (jit_fuser), and base classes of existing
subclasses; so the adaptor is best imported first.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from mindspeed_llm.device.detect import Device, detect
from mindspeed_llm.errors import PatchError
from mindspeed_llm.logging import get_logger
from mindspeed_llm.patches.hooks import PostImport
from mindspeed_llm.patches.record import Outcome, Patch, Report
from mindspeed_llm.patches.registry import REGISTER
from mindspeed_llm.patches.versions import SUPPORTED, has_package, matches, mcore_version

_MISSING = object()
_OTHER_ENGINE = "mindspeed.megatron_adaptor"  # MindSpeed's, which patches the same symbols
_log = get_logger(__name__)


@dataclasses.dataclass
class _Site:
    """One changed symbol: its pristine object and what stands there now."""

    owner: Any
    name: str
    original: Any  # as found in the owner's dictionary, or _MISSING when it was inherited
    current: Any
    aliases: tuple[str, ...] = ()


class Engine:
    """One register and its state in this process."""

    def __init__(self, register: Iterable[Patch], version: str | None | object = _MISSING) -> None:
        self._register = tuple(register)
        self._own = {patch.adapter.split(":")[0] for patch in self._register}
        self._fixed_version = version
        self._device: str | None = None
        self._version: str | None = None
        self._active: dict[str, list[Patch]] = {}
        self._inject: list[Patch] = []
        self._switches: list[Patch] = []
        self._skipped: dict[Patch, str] = {}
        self._sites: dict[str, _Site] = {}
        self._injected: dict[str, tuple[ModuleType, str, Any, Any]] = {}
        self._values: dict[str, Any] = {}
        self._hook = PostImport(self._wanted, self._on_import)

    def apply(self, device: Device | str) -> Report:
        """Patch what is imported, arm the rest; a second call for the same device does nothing.

        Raises:
            PatchError: a target is missing, does not fit, or is claimed twice; or megatron-core is
                of a version that no patch is for.
        """
        kind = device if isinstance(device, str) else device.kind
        if self._device == kind:
            return self.report()
        if _OTHER_ENGINE in sys.modules:
            raise PatchError(_two_engines("was imported before"))
        self.revert()
        self._version = (
            mcore_version() if self._fixed_version is _MISSING else self._fixed_version  # type: ignore[assignment]
        )
        if self._version is not None and self._for_no_patch(self._version):
            raise PatchError(
                f"megatron-core {self._version} is not supported, and nothing would be patched; "
                f"install one that is: pip install 'megatron-core{SUPPORTED}'"
            )
        self._choose(kind)
        self._device = kind
        for patch in self._switches:
            _load(patch.adapter)()
        try:
            for name in list(sys.modules):
                if self._wanted(name) and isinstance(sys.modules[name], ModuleType):
                    self._patch_module(sys.modules[name], late=True)
        except PatchError:
            self.revert()
            raise
        self._hook.arm()
        return self.report()

    def revert(self) -> None:
        """Put every pristine object back, in the owners and in all aliases, and disarm."""
        self._hook.disarm()
        for target, site in reversed(self._sites.items()):
            if vars(site.owner).get(site.name, _MISSING) is not site.current:
                _log.warning("%s was changed by someone else; left as it is", target)
                continue
            if site.original is _MISSING:
                delattr(site.owner, site.name)
            else:
                setattr(site.owner, site.name, site.original)
                if _is_own(site.current, self._own) or _has_aliases(target, site.original):
                    # later from-imports hold the new object, so scan again instead of a log
                    _rebind(site.current, site.original, sys.modules, self._own)
        for module, name, original, value in self._injected.values():
            if vars(module).get(name) is value:
                setattr(module, name, original)
        self._sites.clear()
        self._injected.clear()
        self._values.clear()
        self._active, self._inject, self._switches, self._skipped = {}, [], [], {}
        self._device = None

    def report(self) -> Report:
        """What became of each patch so far."""
        if self._device is None:
            outcomes = tuple(
                Outcome(p, "skipped", "not applied in this process") for p in self._register
            )
            return Report("none", self._version, outcomes)
        return Report(self._device, self._version, tuple(map(self._outcome, self._register)))

    def modules(self) -> tuple[str, ...]:
        """Modules whose import would be patched on this machine."""
        return tuple(sorted({target.split(":")[0] for target in self._active}))

    def _outcome(self, patch: Patch) -> Outcome:
        if patch in self._skipped:
            return Outcome(patch, "skipped", self._skipped[patch])
        if patch.kind == "switch":
            return Outcome(patch, "applied", "stays until the process ends")
        if patch.kind == "inject":
            count = sum(1 for key in self._injected if key.startswith(f"{patch.target} "))
            return Outcome(patch, "applied" if count else "armed", f"{count} modules")
        sites = [self._sites[target] for target in patch.targets if target in self._sites]
        aliases = tuple(alias for site in sites for alias in site.aliases)
        if len(sites) == len(patch.targets):
            return Outcome(patch, "applied", "", aliases)
        return Outcome(patch, "armed", "its module is not imported yet", aliases)

    def _choose(self, kind: str) -> None:
        replaced: dict[str, Patch] = {}
        for patch in self._register:
            if self._version is None:
                self._skipped[patch] = "megatron-core is not installed"
            elif kind not in patch.devices:
                self._skipped[patch] = f"not for {kind}"
            elif not matches(self._version, patch.mcore):
                self._skipped[patch] = f"not for megatron-core {self._version}"
            elif (missing := self._missing_package(patch)) is not None:
                self._skipped[patch] = f"{missing} is not installed"
            elif patch.kind == "inject":
                self._inject.append(patch)
            elif patch.kind == "switch":
                self._switches.append(patch)
            else:
                for target in patch.targets:
                    if patch.kind == "replace" and replaced.setdefault(target, patch) is not patch:
                        raise PatchError(
                            f"{target} is replaced by {replaced[target].adapter} and by "
                            f"{patch.adapter} (megatron-core {self._version}); keep one"
                        )
                    self._active.setdefault(target, []).append(patch)

    def _for_no_patch(self, version: str) -> bool:
        """Whether the register has entries and none of them, for any device, is for `version`."""
        return bool(self._register) and not any(
            matches(version, patch.mcore) for patch in self._register
        )

    @staticmethod
    def _missing_package(patch: Patch) -> str | None:
        """The part of megatron that the target is in, when megatron-core came without it."""
        parts = patch.target.split(":")[0].split(".")
        package = ".".join(parts[:2])
        optional = parts[0] == "megatron" and package not in ("megatron.*", "megatron.core")
        return package if optional and not has_package(package) else None

    def _wanted(self, name: str) -> bool:
        if name == _OTHER_ENGINE:
            raise PatchError(_two_engines("is imported after"))
        if any(name.startswith(patch.target.split("*")[0]) for patch in self._inject):
            return True
        return any(target.split(":")[0] == name for target in self._active)

    def _on_import(self, module: ModuleType) -> None:
        # a reload has put pristine objects back: what was known about the module is void
        for target in [t for t in self._sites if t.split(":")[0] == module.__name__]:
            del self._sites[target]
        self._patch_module(module, late=False)

    def _patch_module(self, module: ModuleType, late: bool) -> None:
        for patch in self._inject:
            self._inject_into(patch, module)
        for target, patches in self._active.items():
            if target.split(":")[0] == module.__name__ and target not in self._sites:
                site = self._build(target, patches, module)
                self._sites[target] = site
                setattr(site.owner, site.name, site.current)
                if _has_aliases(target, site.original):
                    scope = sys.modules if late else _below(module.__name__.split(".")[0])
                    site.aliases = _rebind(site.original, site.current, scope, self._own)

    def _inject_into(self, patch: Patch, module: ModuleType) -> None:
        prefix, name = patch.target.split("*:")
        original = vars(module).get(name)
        if not module.__name__.startswith(prefix) or original is not sys.modules.get(name):
            return
        if original is None:
            return
        if patch.target not in self._values:
            self._values[patch.target] = _load(patch.adapter)(original)
        value = self._values[patch.target]
        self._injected[f"{patch.target} {module.__name__}"] = (module, name, original, value)
        setattr(module, name, value)

    def _build(self, target: str, patches: list[Patch], module: ModuleType) -> _Site:
        owner: Any = module
        *parents, name = target.split(":")[1].split(".")
        for parent in parents:
            owner = inspect.getattr_static(owner, parent, _MISSING)
        found = inspect.getattr_static(owner, name, _MISSING) if owner is not _MISSING else _MISSING
        if found is _MISSING:
            raise PatchError(
                f"{target} does not exist in megatron-core {self._version}: "
                f"{patches[0].adapter} cannot change it; install a megatron-core "
                f"{patches[0].mcore}, or report this"
            )
        new = pristine = _unbound(found)
        for patch in sorted(patches, key=lambda p: (p.kind != "replace", p.priority, p.adapter)):
            adapter = _load(patch.adapter)
            changed = adapter if patch.kind == "replace" else adapter(new)
            self._check(patch, target, pristine, changed)
            new = changed
        if isinstance(found, (staticmethod, classmethod)):
            new = type(found)(new)
        return _Site(owner, name, vars(owner).get(name, _MISSING), new)

    def _check(self, patch: Patch, target: str, original: Any, new: Any) -> None:
        problem = misfit(original, new, patch.needs)
        if problem:
            raise PatchError(
                f"{patch.adapter} does not fit {target} of megatron-core {self._version}: "
                f"{problem}; install a megatron-core {patch.mcore}, or report this"
            )


def _two_engines(when: str) -> str:
    return (
        f"{_OTHER_ENGINE} {when} mindspeed_llm.megatron_adaptor: both exchange the same functions "
        "of megatron-core, and which of them would stand depends on the order of imports. Keep one "
        "of the two imports; ours needs nothing of MindSpeed's"
    )


def misfit(original: Any, new: Any, needs: tuple[str, ...] = ()) -> str | None:
    """Why calls written for `original` would fail on `new`; None when they fit.

    Only plain functions are compared; `needs` must be parameters of the original.
    """
    if not isinstance(original, FunctionType):
        return None
    theirs = inspect.signature(original).parameters
    missing = [name for name in needs if name not in theirs]
    if missing:
        return f"the installed function has no parameter {', '.join(missing)}"
    if not isinstance(new, FunctionType):
        return None
    ours = inspect.signature(new, follow_wrapped=False).parameters
    kinds = {parameter.kind for parameter in ours.values()}
    star, stars = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    if stars not in kinds:
        refused = [n for n, p in theirs.items() if n not in ours and p.kind not in (star, stars)]
        if refused:
            return f"the adapter does not take {', '.join(refused)}"
    if star not in kinds:
        for ours_name, theirs_name in zip(_positional(ours), _positional(theirs), strict=False):
            if ours_name != theirs_name:
                return f"the adapter takes {ours_name} where the installed one takes {theirs_name}"
    extra = [n for n, p in ours.items() if n not in theirs and _required(p)]
    return f"the adapter also requires {', '.join(extra)}" if extra else None


def _positional(parameters: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds]


def _required(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _unbound(found: Any) -> Any:
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def _has_aliases(target: str, original: Any) -> bool:
    """Whether `original` is module `target`'s own function or class, to be found by identity.

    What the module only holds (torch.compile as jit_fuser, True) has other, rightful holders.
    """
    module, path = target.split(":")
    own = isinstance(original, (FunctionType, type)) and original.__module__ == module
    return own and "." not in path


def _is_own(value: Any, own: set[str]) -> bool:
    """Whether `value` is an adapter's function or class, which nobody else can hold rightfully."""
    return isinstance(value, (FunctionType, type)) and value.__module__ in own


def _below(package: str) -> Iterator[str]:
    return (name for name in list(sys.modules) if name.startswith(package))


def _rebind(old: Any, new: Any, names: Iterable[str], own: set[str]) -> tuple[str, ...]:
    """Put `new` wherever a module's globals hold `old`, under any name; returns `module.name`s.

    Modules in `own` hold the adapters themselves and are left alone. Looks into dictionaries only:
    an attribute access would trigger lazy imports of other packages.
    """
    changed = []
    for name in list(names):
        space = getattr(sys.modules.get(name), "__dict__", None)
        if type(space) is not dict or name in own:
            continue
        for key, value in list(space.items()):
            if value is old:
                space[key] = new
                changed.append(f"{name}.{key}")
    return tuple(changed)


def _load(adapter: str) -> Any:
    module, path = adapter.split(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


_ENGINE = Engine(REGISTER)


def apply(device: Device | None = None) -> Report:
    """Apply the register to this process, for `device` or the one that detect() finds."""
    return _ENGINE.apply(detect() if device is None else device)


def revert() -> None:
    """Take every change back."""
    _ENGINE.revert()


def report() -> Report:
    """What became of each entry of the register in this process."""
    return _ENGINE.report()


def modules() -> tuple[str, ...]:
    """Modules whose import is patched on this machine, the facade's aside."""
    return _ENGINE.modules()
