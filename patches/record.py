"""Owns the form of a register entry and of its outcome; knows no entry and no way to apply it."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args

from mindspeed_llm.patches.versions import SUPPORTED

Kind = Literal["replace", "wrap", "inject", "switch"]
State = Literal["applied", "armed", "skipped"]
_SYMBOL = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_PREFIX = re.compile(r"^[A-Za-z_]\w*\.\*:[A-Za-z_]\w*$")
DEVICES = ("npu", "cuda", "cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch:
    """One change to a symbol of another package.

    target: `package.module:Name.attribute`; for `inject` and `switch`, `package.*:name`, the
        global `name` of every module below `package`.
    adapter: `module:object`, imported only when the target's module is there.
    kind: `replace` puts the adapter in the target's place; `wrap` puts `adapter(original)` there;
        `inject` puts `adapter(original)` in place of one global name in many modules;
        `switch` calls the vendor's own switch, `adapter()`, which cannot be taken back.
    why, upstream, remove_when: what is wrong, where it is known, and what makes the entry needless.
    mcore: versions of megatron-core it is for, comma-separated comparisons.
    devices: device kinds it is for.
    rebind: further targets that hold the same object and get the same new one. Aliases made by
        `from module import name` are found by identity and need no entry here.
    needs: parameter names that the installed original must have (`wrap` passes the rest through).
    priority: order among wraps of one target; the smallest is nearest to the original.
    """

    target: str
    adapter: str
    kind: Kind
    why: str
    upstream: str
    remove_when: str
    mcore: str = SUPPORTED
    devices: tuple[str, ...] = DEVICES
    rebind: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    priority: int = 50

    def __post_init__(self) -> None:
        form = _PREFIX if self.kind in ("inject", "switch") else _SYMBOL
        for target in self.targets:
            if not form.match(target):
                raise ValueError(f"{self.kind} patch has the target {target!r}; see Patch")
        if not _SYMBOL.match(self.adapter):
            raise ValueError(f"adapter {self.adapter!r} of {self.target}; expected module:object")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind {self.kind!r} of {self.target}")
        if not self.devices or set(self.devices) - set(DEVICES):
            raise ValueError(f"devices {self.devices} of {self.target}; known: {DEVICES}")
        for field in ("why", "upstream", "remove_when"):
            if not getattr(self, field).strip():
                raise ValueError(f"{field} of {self.target} is empty")

    @property
    def targets(self) -> tuple[str, ...]:
        """The target and everything that is to hold the same new object."""
        return (self.target, *self.rebind)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one patch. `armed`: to be applied when its module is imported."""

    patch: Patch
    state: State
    reason: str = ""
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the whole register, in its order."""

    device: str
    mcore_version: str | None
    outcomes: tuple[Outcome, ...]

    def by_target(self) -> dict[str, Outcome]:
        """Outcomes by target; wraps that share a target are reported by the last one."""
        return {outcome.patch.target: outcome for outcome in self.outcomes}
