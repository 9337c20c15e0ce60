"""Owns how Megatron-LM names checkpoints below a root, its formats included; it opens none."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from mindspeed_llm.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
HF = "hf"
TORCH_DIST, MP_RANK = "torch_dist", "mp_rank"


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A checkpoint that Megatron-LM or MindSpeed-LLM wrote.

    Attributes:
        kind: `torch_dist` (metadata.json, .metadata, *.distcp) or the older `mp_rank`
            (mp_rank_XX/model_optim_rng.pt).
        path: its directory; `root`: the one above, with the tracker, or `path` itself.
        iteration: None for "release".
    """

    kind: Literal["torch_dist", "mp_rank"]
    path: Path
    root: Path
    iteration: int | None

    @property
    def hf_dir(self) -> Path:
        """Directory of the model's config.json and tokenizer, which these formats do not have.

        Raises:
            CheckpointError: there is none.
        """
        for place in (self.path / HF, self.root / HF):
            if (place / "config.json").is_file():
                return place
        raise CheckpointError(
            f"{self.path}: a {self.kind} checkpoint, which does not say what its model is; put "
            f"the model's Hugging Face files (config.json, tokenizer) into {self.root / HF}"
        )


def iteration_name(iteration: int | None) -> str:
    """Directory name of an iteration: `iter_0000120`; `release` for None."""
    return "release" if iteration is None else f"iter_{iteration:07d}"


def read_tracker(root: Path) -> int | None:
    """The iteration that `root`'s tracker names; None for "release".

    Raises:
        CheckpointError: it says something else.
    """
    tracker = root / TRACKER
    with open(tracker, "rb") as file:
        word = file.read(64).strip().decode("ascii", "replace")
    if word != "release" and not re.fullmatch(r"[0-9]{1,18}", word):
        raise CheckpointError(f"{tracker}: says {word!r}; expected 'release' or a number")
    return None if word == "release" else int(word)


def find_foreign(root: Path) -> Foreign | None:
    """The foreign checkpoint that `root` is or that its tracker names; None: it is something else.

    Raises:
        CheckpointError: the tracker says nonsense.
    """
    root = Path(root)
    if (root / TRACKER).is_file():
        iteration = read_tracker(root)
        path = root / iteration_name(iteration)
        kind = _kind(path)
        return None if kind is None else Foreign(kind, path, root, iteration)
    if (kind := _kind(root)) is None:
        return None
    match = re.fullmatch(r"iter_([0-9]+)", root.name)
    above = root.parent if (root.parent / TRACKER).is_file() else root
    return Foreign(kind, root, above, int(match[1]) if match else None)


def _kind(path: Path) -> Literal["torch_dist", "mp_rank"] | None:
    if (path / "MANIFEST.json").is_file():  # ours
        return None
    if (path / ".metadata").is_file() and (path / "metadata.json").is_file():
        return "torch_dist"
    return "mp_rank" if any(path.glob("mp_rank_*/model_optim_rng.pt")) else None
