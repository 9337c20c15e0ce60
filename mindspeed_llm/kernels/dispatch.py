"""Owns the choice of a kernel: the first candidate of an operation's row that is there and fits
what is needed, with the reason; knows no kernel and no layer.

`table` lists the candidates. A module asks once, when it is built, and keeps the function. Whatever
is passed over is named: in a warning, in `mindspeed-llm doctor`, or, with `require_fused`, in an
error.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mindspeed_llm.errors import KernelError
from mindspeed_llm.logging import get_logger

WITHOUT = "MINDSPEED_LLM_WITHOUT_KERNELS"  # names of kernels to pass over, separated by commas
REQUIRE = "MINDSPEED_LLM_REQUIRE_FUSED"  # --require-fused, for programs that are not ours
_log = get_logger(__name__)


@dataclasses.dataclass
class _Policy:
    """This process's: whether a fall-back is an error, and which were named already."""

    strict: bool = False
    said: set[str] = dataclasses.field(default_factory=set)


_policy = _Policy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What a kernel has to do, as far as the choice depends on it.

    Attributes:
        dtype: of activations.
        head_dim: of attention and rotation.
        window: keys a query sees, or None.
        softcap: of attention's scores, or None.
        dropout: of attention's weights.
        zero_centered: RMSNorm applies 1 + w.
        interleaved: rotation turns neighbours, not halves.
        split: the vocabulary lies on several ranks.
        bias_correction: of AdamW's means.
    """

    dtype: torch.dtype = torch.float32
    head_dim: int = 64
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    zero_centered: bool = False
    interleaved: bool = False
    split: bool = False
    bias_correction: bool = True


def _always(*_: Any) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One kernel of an operation.

    Attributes:
        kernel: its name, as it is shown.
        place: `module:function` below `mindspeed_llm.kernels`.
        why: what speaks for it.
        available: why it cannot run in this process, or None. It looks at the operator or package
            itself, never at version numbers.
        fits: why it cannot do what is needed, or None.
        fused: False for what is only there so that everything works everywhere; choosing it where
            a fused candidate stands before it is a fall-back.
    """

    kernel: str
    place: str
    why: str
    available: Callable[[], str | None] = _always
    fits: Callable[[Need], str | None] = _always
    fused: bool = True

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"mindspeed_llm.kernels.{module}"), name)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A chosen kernel. `passed` names what stands before it in the table, with the reason."""

    op: str
    device: str
    candidate: Candidate
    passed: tuple[str, ...]

    @property
    def call(self) -> Callable[..., Any]:
        """The kernel."""
        return self.candidate.load()

    @property
    def is_fall_back(self) -> bool:
        """Whether an accelerator has a fused kernel that is not used; the CPU is the reference."""
        return self.device != "cpu" and bool(self.passed) and not self.candidate.fused

    @property
    def why(self) -> str:
        """One line: what speaks for the kernel, and why not the ones before it."""
        return "; ".join((self.candidate.why, *(f"not {one}" for one in self.passed)))


def require_fused(wanted: bool) -> None:
    """From now on, and for this process, a fall-back is an error (or not)."""
    _policy.strict = wanted


def look(op: str, device: str, need: Need, candidates: Sequence[Candidate]) -> Choice:
    """The first of `candidates` that is there and fits; says nothing and refuses nothing.

    The last one has to do everything.
    """
    passed: list[str] = []
    for candidate in candidates[:-1]:
        cause = _excluded(candidate) or candidate.available() or candidate.fits(need)
        if cause is None:
            return Choice(op, device, candidate, tuple(passed))
        passed.append(f"{candidate.kernel}: {cause}")
    return Choice(op, device, candidates[-1], tuple(passed))


def choose(op: str, device: str, need: Need, candidates: Sequence[Candidate]) -> Choice:
    """The kernel of `op` for tensors on `device` ("npu", "cuda" or "cpu"), and why.

    Raises:
        KernelError: it would be a fall-back and `require_fused` holds.
    """
    choice = look(op, device, need, candidates)
    if choice.is_fall_back:
        fall_back(f"{op} on {device} runs as {choice.candidate.kernel} ({choice.why})")
    return choice


def fall_back(text: str) -> None:
    """Say, once a process, what does not run fused.

    Raises:
        KernelError: `require_fused` holds, or the environment's REQUIRE is 1, or neither 1 nor 0.
    """
    if _policy.strict or _required():
        name = "--require-fused" if _policy.strict else REQUIRE
        raise KernelError(f"{name}: {text}; install or update what is missing, or drop it")
    if text not in _policy.said:
        _policy.said.add(text)
        _log.warning("%s", text)


def check_without(known: Sequence[str]) -> None:
    """Refuse names in the environment's WITHOUT that pass nothing over.

    Raises:
        KernelError: a name is none of `known`.
    """
    for name in sorted(_without() - set(known)):
        raise KernelError(
            f"{WITHOUT} names {name!r}, which is no kernel that can be passed over; expected, "
            f"separated by commas: {', '.join(known)}"
        )


def _without() -> set[str]:
    return {name.strip() for name in os.environ.get(WITHOUT, "").split(",")} - {""}


def _required() -> bool:
    value = os.environ.get(REQUIRE, "").strip()
    if value not in ("", "0", "1"):
        raise KernelError(f"{REQUIRE} is {value!r}; expected 1 (a fall-back is an error) or 0")
    return value == "1"


def _excluded(candidate: Candidate) -> str | None:
    return f"{WITHOUT} names it" if candidate.kernel in _without() else None
