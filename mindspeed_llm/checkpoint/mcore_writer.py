"""Owns writing whole weights as `<root>/release`, in our format or as torch_dist.

They appear complete or not at all. It does not know where they are from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mindspeed_llm.checkpoint.assets import copy_assets
from mindspeed_llm.checkpoint.directory import Staging, is_checkpoint_root
from mindspeed_llm.checkpoint.progress import ByteProgress
from mindspeed_llm.checkpoint.store import Fetch, Planned, merge_indexes, write_chunks
from mindspeed_llm.checkpoint.sums import write_sums
from mindspeed_llm.checkpoint.tracker import HF
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import CheckpointError

CkptFormat = Literal["safetensors", "torch_dist"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where weights go, and how.

    Attributes:
        root: gets `release` and the tracker.
        parallel: layout it is meant for; noted, though the result loads at any layout.
        tokenizer: directory to take the tokenizer files from, instead of the model's.
        overwrite: replace a checkpoint that is there.
        ckpt_format: `safetensors`, ours, or megatron-core's `torch_dist`.
    """

    root: Path
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    tokenizer: Path | None = None
    overwrite: bool = False
    ckpt_format: CkptFormat = "safetensors"

    def check(self, model: ModelConfig) -> None:
        """Raise ConfigError unless the layout divides `model`, CheckpointError unless the place is
        free."""
        self.parallel.check_model(model)
        check_mcore_target(self.root, self.overwrite)


def check_mcore_target(save_dir: Path, overwrite: bool) -> None:
    """Raise CheckpointError unless a checkpoint may be written to `save_dir`."""
    if not save_dir.exists():
        return
    if not save_dir.is_dir():
        raise CheckpointError(f"{save_dir}: is a file; expected a directory to write to")
    if is_checkpoint_root(save_dir):
        if not overwrite:
            raise CheckpointError(f"{save_dir}: holds a checkpoint already; choose another "
                                  "directory, or --overwrite to replace it")  # fmt: skip
    elif any(p for p in save_dir.iterdir() if ".tmp-" not in p.name):
        raise CheckpointError(f"{save_dir}: not empty and no checkpoint; choose another directory")


def write_mcore(
    target: Target,
    plan: Sequence[Planned],
    fetch: Fetch,
    *,
    model: ModelConfig,
    documents: Path,
    what: str,
) -> Path:
    """Write the planned tensors; the new directory.

    Args:
        plan: covers each global tensor of the model.
        fetch: see `store.Fetch`.
        documents: directory of config.json and tokenizer.
        what: of the progress, e.g. "converting".

    Raises:
        CheckpointError: the disk refuses, or what `fetch` raises. Nothing is written then.
    """
    staging = Staging.begin(target.root, None)
    try:
        with ByteProgress(what, sum(planned.nbytes for planned in plan)) as progress:
            if target.ckpt_format == "torch_dist":
                # Late: few need it, and megatron-core takes seconds to import.
                from mindspeed_llm.checkpoint.torch_dist_writer import write_torch_dist

                write_torch_dist(staging.path, plan, fetch, num_layers=model.num_layers,
                                 on_bytes=progress.advance)  # fmt: skip
                copy_assets(documents, staging.path / HF, target.tokenizer)
                write_sums(staging.path)
                return staging.name([staging.path, staging.path / HF])
            records, index = write_chunks(
                staging.path, "model-r00000", plan, fetch, on_bytes=progress.advance
            )
        layout = {
            "processes": 1,
            "tensor_parallel": target.parallel.tensor_model_parallel_size,
            "pipeline_parallel": target.parallel.pipeline_model_parallel_size,
            "expert_parallel": target.parallel.expert_model_parallel_size,
        }
        about = {"vocab_size": model.vocab_size, "iteration": None, "optimizer": [],
                 "layout": layout}  # fmt: skip
        common = {"about": about, "state": {}, "optimizer": {}, "objects": {}, "rng": []}
        records += staging.write_documents(
            merge_indexes([index]), common, documents, target.tokenizer
        )
        return staging.commit(records).path
    except BaseException:
        staging.discard()
        raise
