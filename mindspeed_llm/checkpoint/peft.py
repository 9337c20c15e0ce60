"""Owns the directories in which Hugging Face's PEFT keeps LoRA adapters, read and written:
adapter_config.json and adapter_model.safetensors. It knows no checkpoint of ours.

Layout: https://huggingface.co/docs/peft (checkpoint format). Our fused layers share one A among q,
k and v, and among gate and up; in a PEFT directory each has a copy of it and its own rows of B.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint.adapter import Adapter, targets_in
from mindspeed_llm.checkpoint.assets import sync_tree, write_json
from mindspeed_llm.checkpoint.directory import put_in_place, staging_beside
from mindspeed_llm.checkpoint.hf_source import FLOATS
from mindspeed_llm.checkpoint.tensor_file import TensorFile, TensorFileWriter
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.tuning import TARGETS, LoraConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.names import NameRule, expand, hf_shapes, to_hf, to_mcore
from mindspeed_llm.models.registry import rules_of
from mindspeed_llm.models.shapes import mcore_shape

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Keys of adapter_config.json that this reader understands, or that do not change the numbers; any
# other must be unset, since it may.
_UNDERSTOOD = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights"}
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "layers_pattern",
    "layers_to_transform", "exclude_modules", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
_SHOWN = 6

Table = dict[tuple[str, int], NameRule]


def is_peft_directory(root: Path) -> bool:
    """Whether `root` looks like a PEFT adapter."""
    return (Path(root) / CONFIG).is_file()


def _table(model: ModelConfig) -> Table:
    """The name rule of every weight that an adapter can belong to."""
    rules = {rule.mcore: rule for rule in expand(rules_of(model), model.num_layers)}
    return {(target, layer): rules[name] for name, target, layer in targets_in(list(rules))}


def _modules(rule: NameRule) -> list[str]:
    return [name.removesuffix(".weight") for name in rule.hf]


def read_peft(directory: Path, model: ModelConfig) -> Adapter:
    """A PEFT LoRA directory as an adapter of `model`.

    Where q, k and v (or gate and up) have different A, or some of them none, the fused layer gets
    all of them side by side, of a rank that is the sum.

    Raises:
        CheckpointError: another kind of adapter, a setting that is not understood, tensors that are
            missing, unknown, or of another shape.
    """
    said, tensors = _read_config(directory / CONFIG), _read_tensors(directory / WEIGHTS)
    rank, alpha = said["r"], float(said["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)
    factors, table = {}, _table(model)
    for place, rule in table.items():
        pairs = _take(tensors, rule, model, rank, directory)
        if any(pair is not None for pair in pairs):
            factors[place] = _fuse(pairs, rule, model)
    if tensors:
        names = sorted(tensors)
        raise CheckpointError(
            f"{directory / WEIGHTS}: {names[0]} ({len(names)} names in all) belongs to no linear "
            f"layer of this {model.family} model, or lacks its lora_A or lora_B"
        )
    if not factors:
        raise CheckpointError(f"{directory / WEIGHTS}: holds no adapter")
    targets = tuple(target for target in TARGETS if any(t == target for t, _ in factors))
    dropout = float(said.get("lora_dropout") or 0.0)
    config = LoraConfig(rank=rank, alpha=scale * rank, dropout=dropout, targets=targets)
    return Adapter(config=config, factors=factors)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
        if said["peft_type"] != "LORA":
            raise CheckpointError(f"{path}: peft_type is {said['peft_type']!r}; expected 'LORA'")
        rank, alpha = said["r"], said["lora_alpha"]
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not alpha > 0:
            raise ValueError(f"r is {rank!r}, lora_alpha {alpha!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(f"{path}: damaged or no adapter of PEFT ({err!r:.120})") from None
    odd = {
        key: value
        for key, value in said.items()
        if value and value != "none" and key not in _UNDERSTOOD | _HARMLESS
    }
    if said.get("init_lora_weights") not in (None, True, False, "gaussian"):
        odd["init_lora_weights"] = said["init_lora_weights"]  # changes the base weights as well
    if odd:
        key = sorted(odd)[0]
        raise CheckpointError(f"{path}: {key} is {odd[key]!r:.80}, which is not supported; merge "
                              "the adapter with PEFT and convert the result")  # fmt: skip
    return said


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; adapters are read from safetensors only, a .bin "
                              "is a pickle: re-save it with safe_serialization=True")  # fmt: skip
    with TensorFile(path) as file:
        wrong = [name for name, entry in file.entries.items() if entry.dtype not in FLOATS]
        if wrong:
            raise CheckpointError(f"{path}: {wrong[0]} is no fp32, bf16 or fp16 tensor")
        return {name: file.read(name) for name in file.entries}


def _take(
    tensors: dict[str, torch.Tensor], rule: NameRule, model: ModelConfig, rank: int, where: Path
) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Remove A and B of each Hugging Face tensor of `rule` from `tensors`; None where none are."""
    pairs: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    shapes = hf_shapes(rule, model, mcore_shape(rule, model))
    for module, (rows, columns) in zip(_modules(rule), shapes, strict=True):
        names = [f"{_PREFIX}{module}.lora_{part}.weight" for part in "AB"]
        if not all(name in tensors for name in names):
            pairs.append(None)
            continue
        a, b = (tensors.pop(name) for name in names)
        if a.shape != (rank, columns) or b.shape != (rows, rank):
            raise CheckpointError(
                f"{where / WEIGHTS}: {module} has an adapter of shapes {list(a.shape)} and "
                f"{list(b.shape)}; expected {[rank, columns]} and {[rows, rank]}"
            )
        pairs.append((a, b))
    return pairs


def _fuse(
    pairs: list[tuple[torch.Tensor, torch.Tensor] | None], rule: NameRule, model: ModelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of the fused layer: the shared A, or all A above each other and B in blocks."""
    there = [pair for pair in pairs if pair is not None]
    first = there[0][0]
    if len(there) == len(pairs) and all(torch.equal(a, first) for a, _ in there):
        return first, to_mcore(rule, model, [b for _, b in there])
    shapes = hf_shapes(rule, model, mcore_shape(rule, model))
    rank, total = first.shape[0], sum(pair[0].shape[0] for pair in there)
    blocks, column = [], 0
    for pair, (rows, _) in zip(pairs, shapes, strict=True):
        block = first.new_zeros(rows, total)
        if pair is not None:
            block[:, column : column + rank] = pair[1]
            column += rank
        blocks.append(block)
    return torch.cat([a for a, _ in there]), to_mcore(rule, model, blocks)


def write_peft(
    adapter: Adapter, model: ModelConfig, directory: Path, *, base: str | None, overwrite: bool
) -> int:
    """Write an adapter as a PEFT directory, complete or not at all; the number of tensors.

    Args:
        base: where PEFT finds the base model; None: its user says it.
        overwrite: replace a PEFT directory that is there.

    Raises:
        CheckpointError: the directory is in use, or the disk refuses.
    """
    _check_target(directory, overwrite)
    tensors: dict[str, torch.Tensor] = {}
    table = _table(model)
    for place, (a, b) in adapter.factors.items():
        rule = table[place]
        for module, rows in zip(_modules(rule), to_hf(rule, model, b), strict=True):
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = rows
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_beside(directory)
    staging.mkdir()
    try:
        write_json(staging / CONFIG, _config(adapter, model, table, base))
        announced = [(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
        writer = TensorFileWriter(staging / WEIGHTS, announced, {"format": "pt"}, hashed=False)
        try:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
            writer.finish()
        except BaseException:
            writer.abort()
            raise
        sync_tree(staging)
        put_in_place(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return len(tensors)


def _check_target(directory: Path, overwrite: bool) -> None:
    if directory.is_file():
        raise CheckpointError(f"{directory}: is a file; expected a directory to write to")
    if directory.is_dir() and any(directory.iterdir()):
        if not is_peft_directory(directory):
            raise CheckpointError(f"{directory}: not empty and no PEFT adapter; choose another "
                                  "directory")  # fmt: skip
        if not overwrite:
            raise CheckpointError(f"{directory}: holds an adapter already; choose another "
                                  "directory, or --overwrite to replace it")  # fmt: skip


def _config(
    adapter: Adapter, model: ModelConfig, table: Mapping[tuple[str, int], NameRule],
    base: str | None,
) -> dict[str, Any]:  # fmt: skip
    modules = {name.rpartition(".")[2] for place in adapter.factors
               for name in _modules(table[place])}  # fmt: skip
    config = adapter.config
    whole = config.alpha == int(config.alpha)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if whole else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
