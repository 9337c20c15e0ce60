"""Owns saving and loading of a training run and of weights: what is in a checkpoint, and when.

Model and optimizer tensors, random states and JSON state go through `sharded`, `objects` and
`directory`, whose formats they are. It knows no training loop and no flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import Float16Module

from mindspeed_llm.checkpoint import adapter as adapters
from mindspeed_llm.checkpoint import optimizer_state, ranks, rng
from mindspeed_llm.checkpoint.assets import Chat
from mindspeed_llm.checkpoint.directory import (
    CheckpointDir,
    Staging,
    Verify,
    find_checkpoint,
    iteration_name,
)
from mindspeed_llm.checkpoint.objects import pack, unpack
from mindspeed_llm.checkpoint.progress import ByteProgress
from mindspeed_llm.checkpoint.sharded import (
    InPlace,
    Piece,
    ToSave,
    check_request,
    reading,
    split_for_saving,
    write_pieces,
)
from mindspeed_llm.checkpoint.store import (
    Planned,
    Stored,
    TensorSource,
    index_from_json,
    index_to_json,
    merge_indexes,
)
from mindspeed_llm.checkpoint.tensor_file import FileRecord
from mindspeed_llm.checkpoint.weights import (
    Place,
    identify,
    locate,
    open_base,
    open_weights,
    verify_sections,
)
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.logging import get_logger
from mindspeed_llm.models.registry import read_model

MODEL, OPTIMIZER, RNG, OBJECTS = "model", "optimizer", "rng", "objects"
_log = get_logger(__name__)


def save_training(
    root: Path,
    iteration: int,
    *,
    model: Sequence[torch.nn.Module],
    optimizer: MegatronOptimizer | None,
    state: Mapping[str, Any],
    lora: Mapping[str, Any] | None = None,
    hf_assets: Path,
    chat: Chat | None = None,
) -> CheckpointDir:
    """Write `<root>/iter_<iteration>`, complete or not at all; every rank calls it.

    Args:
        root: the run's checkpoint directory, shared by all ranks.
        model: this rank's chunks (GPTModel, possibly wrapped in Float16Module and DDP).
        optimizer: megatron-core's, distributed or not; None saves weights and state only.
        state: plain data (see `objects.pack`) that is the same on every rank: scheduler,
            consumed samples, settings. `load_training` gives it back.
        lora: of a model with adapters, of which only these are written: `adapter.facts`.
        hf_assets: directory of config.json and tokenizer, e.g. `model_directory(load_dir)`.
        chat: how the model talks since it was trained; goes into the checkpoint's Hugging Face
            files, and into what is exported from it. Rank 0's counts.

    Raises:
        CheckpointError: on every rank, if any rank could not write; nothing is left behind and
            the former checkpoint stays the latest.
    """
    root = Path(root)
    vocab_size = read_model(hf_assets).vocab_size
    shares = {}
    with ranks.together("collecting the state"):
        states = _model_states(model)
        if optimizer is not None:
            shares[OPTIMIZER] = optimizer_state.to_save(optimizer, states)
        shares[MODEL] = split_for_saving(states, MODEL)
    partial = _frozen(_model_states(model))  # anew: splitting has changed the former
    facts = {
        "layout": _layout(),
        "optimizer": optimizer_state.kinds(optimizer),
        "megatron_core": version("megatron-core"),
    }
    facts |= {} if lora is None else {"lora": dict(lora)}
    staging = _begin(root, iteration)
    try:
        with ranks.together(f"saving {iteration_name(iteration)} to {root}"):
            records, index, extra = _write_share(staging.path, shares, state)
        everything = ranks.gather(
            [[vars(r) for r in records], index_to_json(index), extra["rng"], extra["objects"]]
        )
        done: list[Any] | None = None
        with ranks.together(f"saving {iteration_name(iteration)} to {root}"):
            if ranks.rank() == 0:
                about = facts | {"vocab_size": vocab_size, "iteration": iteration}
                assets = hf_assets, chat
                done = _commit(staging, everything, extra, about, assets, partial)
        iteration, done = ranks.from_first([iteration, done])
    except BaseException:
        if ranks.rank() == 0:
            staging.discard()
        raise
    files = {r["name"]: FileRecord(**r) for r in done}
    return CheckpointDir(root / iteration_name(iteration), iteration, files)


def load_weights(
    root: Path,
    model: Sequence[torch.nn.Module],
    *,
    adapter: Path | None = None,
    check: Verify = "full",
    trust_pickle: bool = False,
) -> None:
    """Fill `model` in place from a checkpoint of any layout, or from a Hugging Face directory.

    An adapter is merged into the weights, and so is that of a LoRA checkpoint at `root`.

    Weights of another floating-point dtype are cast (and it is logged). Call it before the
    optimizer is made, or `optimizer.reload_model_params()` afterwards. Every rank calls it.

    Args:
        root: checkpoint root or directory (see `find_checkpoint`), or a Hugging Face model.
        model: this rank's chunks, possibly wrapped.
        adapter: a LoRA checkpoint, or a PEFT directory.
        check: see `directory.Verify`; a Hugging Face directory has nothing to check against.
        trust_pickle: read pickled weights of others, see `pickled`.

    Raises:
        CheckpointError: missing, damaged, or of another model; `model` is then unchanged.
    """
    source, vocab_size = open_weights(
        locate(Path(root), adapter, trust_pickle=trust_pickle), check=check
    )
    _fill_model(_model_states(model), source, vocab_size, cast=True)


def load_base(
    place: Place, model: Sequence[torch.nn.Module], expected: adapters.Base | None
) -> adapters.Base:
    """Fill `model` with the weights at `place.base`, without the adapter; every rank calls it.

    Returns:
        what these weights are; checked against `expected`, the adapter's.

    Raises:
        CheckpointError: missing, damaged, of another model, or other weights than expected.
    """
    source, vocab_size = open_base(place.base, trust_pickle=place.trust_pickle)
    base = identify(place, source, vocab_size, expected)
    _fill_model(_model_states(model), source, vocab_size, cast=True)
    return base


def load_adapter(adapter: adapters.Adapter, model: Sequence[torch.nn.Module]) -> None:
    """Fill the adapters of `model`; every rank calls it.

    Raises:
        CheckpointError: it is of another shape, or has no A that a fused layer's parts share.
    """
    layers = _unwrapped(model)[0].config.num_layers
    _fill_model(_model_states(model), adapter.source(layers), 0, cast=True)


def load_training(
    root: Path,
    model: Sequence[torch.nn.Module],
    optimizer: MegatronOptimizer | None,
    *,
    check: Verify = "full",
    with_optimizer: bool = True,
    with_rng: bool = True,
) -> dict[str, Any]:
    """Restore what `save_training` wrote and return its `state`; every rank calls it.

    With the same number of processes and the same TP, PP, VPP and CP the run continues bit-equal.
    With another layout weights and optimizer are the same numbers, but the random states are those
    of other ranks: they are left as they are (seeded by the new run) and a warning says so.

    Args:
        with_optimizer, with_rng: False leaves the optimizer's state, or the random states, as they
            are; the optimizer's main weights are those that were loaded.

    Raises:
        CheckpointError: missing, damaged, of another model or optimizer, or converted weights
            ("release"), which have no training state.
    """
    checkpoint = find_checkpoint(root)
    if checkpoint.iteration is None:
        raise CheckpointError(f"{checkpoint.path}: converted weights, not an interrupted run; "
                              "start from its weights instead of resuming")  # fmt: skip
    common = checkpoint.common()
    source = checkpoint.reader()
    verify_sections(checkpoint, source.tensors, (MODEL, OPTIMIZER, RNG, OBJECTS), check)
    about, layout = common["about"], _layout()

    def tensor(key: str) -> torch.Tensor:
        stored = source.tensors[key]
        out = torch.empty(stored.shape, dtype=stored.dtype)
        source.read(key, (0,) * len(stored.shape), out)
        return out

    kinds = optimizer_state.kinds(optimizer)
    same = set(about["optimizer"]) == set(kinds)
    if optimizer is not None and with_optimizer and not same:
        raise CheckpointError(f"{checkpoint.path}: saved with optimizer {about['optimizer']}, this "
                              f"run has {kinds}; use the settings it was saved with (distributed "
                              "optimizer, dtype), or start from its weights")  # fmt: skip
    states = _model_states(model)
    _fill_model(states, source, about["vocab_size"], cast=False)
    if optimizer is not None and not with_optimizer:
        optimizer.reload_model_params()
    elif optimizer is not None:
        optimizer_state.load(
            optimizer,
            states,
            source,
            common=unpack(common["optimizer"], tensor),
            objects=unpack(common["objects"], tensor),
            vocab_size=about["vocab_size"],
        )
    if not with_rng:
        _log.info("the random state of the checkpoint is left out (--no-load-rng)")
    elif about["layout"] == layout:
        rng.restore(unpack(common["rng"][ranks.rank()], tensor))
    else:
        (_log.warning if ranks.rank() == 0 else _log.debug)(
            "resuming with %s what was saved with %s: the weights and the optimizer are the same, "
            "but random numbers (dropout) start anew", layout, about["layout"],
        )  # fmt: skip
    _log.info("resuming from %s", checkpoint.path)
    return unpack(common["state"], tensor)


def _frozen(states: Mapping[str, Mapping[str, Any]]) -> Callable[[str], bool]:
    """Says of a key whether it is the optimizer's state of a weight that is frozen in some layers,
    so that the state of these is not there; every rank calls it."""
    mine = sorted(
        item.key
        for state in states.values()
        for item in nested_values(dict(state))
        if getattr(getattr(item, "data", None), "requires_grad", None) is False
    )
    frozen = {key for keys in ranks.gather(mine) for key in keys}
    head = f"{OPTIMIZER}.state."

    def partial(key: str) -> bool:
        return key.startswith(head) and key.removeprefix(head).partition(".")[2] in frozen

    return partial


def _layout() -> dict[str, int]:
    layout = {
        "processes": ranks.world_size(),
        "tensor_parallel": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_parallel": parallel_state.get_pipeline_model_parallel_world_size(),
    }
    rare = {
        "expert_parallel": parallel_state.get_expert_model_parallel_world_size(),
        "context_parallel": parallel_state.get_context_parallel_world_size(),
        "virtual_stages": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
    }
    return layout | {name: size for name, size in rare.items() if size > 1}


def _unwrapped(model: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    chunks = []
    for chunk in model:
        while isinstance(chunk, (DistributedDataParallel, Float16Module)):
            chunk = chunk.module
        chunks.append(chunk)
    return chunks


def _model_states(model: Sequence[torch.nn.Module]) -> dict[str, dict[str, Any]]:
    """Sharded state dicts of the chunks; their data are the parameters themselves.

    A model with adapters stands for these alone: its other weights are the base's, unchanged.
    """
    metadata = {
        "singleton_local_shards": False,
        "non_homogeneous_layers": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    states = {
        f"{MODEL}{i}": chunk.sharded_state_dict(metadata=metadata)
        for i, chunk in enumerate(_unwrapped(model))
    }
    own = {
        name: {key: value for key, value in state.items() if key.endswith((adapters.A, adapters.B))}
        for name, state in states.items()
    }
    return own if any(own.values()) else states


def _begin(root: Path, iteration: int | None) -> Staging:
    staging = None
    with ranks.together(f"saving to {root}"):
        if ranks.rank() == 0:
            staging = Staging.begin(root, iteration)
    path = Path(ranks.from_first(str(staging.path) if staging else None))
    return staging or Staging(root, path, iteration, new_root=False)


def _write_share(
    directory: Path, shares: dict[str, ToSave], state: Mapping[str, Any]
) -> tuple[list[FileRecord], dict[str, Stored], dict[str, Any]]:
    """Write this rank's tensors; the JSON that goes with them is returned."""
    rank = ranks.rank()
    kept: dict[str, list[Piece]] = {RNG: [], OBJECTS: []}

    def keep(section: str) -> Any:
        def store(tensor: torch.Tensor) -> str:
            key = f"{section}.{rank:05d}.{len(kept[section]):05d}"
            kept[section].append(_whole(key, section, tensor.cpu().clone()))
            return key

        return store

    optimizer = shares.get(OPTIMIZER, ToSave([], {}, {}))
    extra = {
        "rng": pack(rng.capture(), keep(RNG), "rng"),
        "objects": pack(optimizer.objects, keep(OBJECTS), "objects"),
    }
    if rank == 0:  # only rank 0's copy is stored; all are alike
        extra["state"] = pack(dict(state), keep(OBJECTS), "state")
        extra["optimizer"] = pack(optimizer.common, keep(OBJECTS), "optimizer")
    records: list[FileRecord] = []
    index: dict[str, Stored] = {}
    jobs = {name: share.pieces for name, share in shares.items()} | kept
    total = sum(p.planned.nbytes for pieces in jobs.values() for p in pieces)
    with ByteProgress(f"saving {directory.name.split('.')[0]}", total) as progress:
        for section, pieces in jobs.items():
            prefix = f"{section}-r{rank:05d}"
            written, part = write_pieces(directory, prefix, pieces, progress.advance)
            records += written
            index |= part
    return records, index, extra


def _whole(key: str, section: str, tensor: torch.Tensor) -> Piece:
    shape = tuple(tensor.shape)
    return Piece(Planned(key, section, shape, tensor.dtype, (0,) * len(shape), shape), tensor)


def _commit(
    staging: Staging,
    everything: list[Any],
    extra: dict[str, Any],
    about: dict[str, Any],
    assets: tuple[Path, Chat | None],
    partial: Callable[[str], bool],
) -> list[dict[str, Any]]:
    """Rank 0: index, JSON and Hugging Face files, then the commit; the records of all files."""
    records = [FileRecord(**record) for share in everything for record in share[0]]
    index = merge_indexes((index_from_parts(share[1]) for share in everything), partial)
    objects: dict[str, Any] = {}
    for share in everything:
        objects |= share[3]
    common = {
        "about": about,
        "state": extra["state"],
        "optimizer": extra["optimizer"],
        "objects": objects,
        "rng": [share[2] for share in everything],
    }
    hf_assets, chat = assets
    records += staging.write_documents(index, common, hf_assets, chat=chat)
    checkpoint = staging.commit(records)
    return [vars(record) for record in checkpoint.files.values()]


def index_from_parts(data: Mapping[str, Any]) -> dict[str, Stored]:
    """One rank's share of an index, which need not cover its tensors."""
    return index_from_json(data, "a rank's share of the index", whole=False)


def _fill_model(
    states: Mapping[str, Mapping[str, Any]], source: TensorSource, vocab_size: int, *, cast: bool
) -> None:
    plan = InPlace(list(states.values()), MODEL)
    check_request(plan.pieces, source, MODEL, cast=cast, vocab_size=vocab_size)
    casts = {
        (source.tensors[p.planned.key].dtype, p.planned.dtype)
        for p in plan.pieces
        if source.tensors[p.planned.key].dtype != p.planned.dtype
    }
    for stored, wanted in sorted(casts, key=str):
        _log.info("weights stored as %s are loaded as %s", stored, wanted)
    with reading("weights", plan.pieces) as on_bytes:
        plan.fill(source, on_bytes)
