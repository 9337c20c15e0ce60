"""Owns reading weights that lie in pickles: torch's weights_only loader, and only when asked for.

It maps files, so that a tensor is read when it is used. It knows no names and no checkpoint.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from mindspeed_llm.checkpoint.tensor_file import Entry
from mindspeed_llm.errors import CheckpointError


def check_trusted(path: Path, trusted: bool) -> None:
    """Raise CheckpointError unless the user said --trust-pickle, and torch's loader is safe."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise CheckpointError(f"{path}: pickled weights are not read with torch {torch.__version__}"
                              ", whose weights_only loader can be made to run code "
                              "(CVE-2025-32434); upgrade to 2.6 or later")  # fmt: skip
    if not trusted:
        raise CheckpointError(
            f"{path}: pickled weights are not read unless you say so; get the safetensors of this "
            "model, re-save it with save_pretrained(..., safe_serialization=True), or give "
            "--trust-pickle if you know where the file is from: torch's weights_only loader reads "
            "it then, which runs no code of the file"
        )


def load(source: Path | IO[bytes], where: Path, *, allow: Sequence[Any] = ()) -> Any:
    """What a file of torch.save holds, on the CPU, by torch's weights_only loader.

    Args:
        source: the file, which is mapped, or a stream.
        allow: classes that may occur beside tensors and containers.

    Raises:
        CheckpointError: no such file, damaged, or it asks for something else.
    """
    mapped = {"mmap": True} if isinstance(source, Path) and zipfile.is_zipfile(source) else {}
    try:
        with torch.serialization.safe_globals(list(allow)):
            return torch.load(source, map_location="cpu", weights_only=True, **mapped)
    except Exception as err:  # its kinds are many, and differ between versions
        raise CheckpointError(f"{where}: torch's weights_only loader does not read it "
                              f"({_cause(str(err)):.300})") from err  # fmt: skip


def _cause(said: str) -> str:
    """What the loader met, without its advice to load the file by other means."""
    for mark in ("from a trusted source.", "WeightsUnpickler error: "):
        said = said.rpartition(mark)[2]
    for advice in ("Please use ", "Check the documentation of "):
        said = said.partition(advice)[0]
    return " ".join(said.split())


class PickledFile:
    """Tensors of a file of torch.save, with the interface of `TensorFile`.

    Args:
        choose: finds the table of tensors in what the file holds.

    Raises:
        CheckpointError: see `load`; or no table of tensors on the CPU.
    """

    def __init__(
        self,
        path: Path,
        choose: Callable[[Any], Any] = lambda content: content,
        *,
        allow: Sequence[Any] = (),
    ) -> None:
        self.path = path
        content = choose(load(path, path, allow=allow))
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a table of "
                                  "tensors")  # fmt: skip
        self._tensors: dict[str, torch.Tensor] = {}
        for name, tensor in content.items():
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                self._tensors[str(name)] = tensor.detach()
            elif not str(name).endswith("_extra_state"):
                raise CheckpointError(f"{path}: {name} is no plain tensor")
        self.entries = {
            name: Entry(t.dtype, tuple(t.shape), 0, t.nbytes) for name, t in self._tensors.items()
        }

    def read_box(
        self,
        name: str,
        offset: Sequence[int],
        shape: Sequence[int],
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Elements `offset` ... `offset + shape` of tensor `name`; see `TensorFile.read_box`."""
        box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
        part = self._tensors[name][box]
        return part.clone() if out is None else out.copy_(part)

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self._tensors = {}
