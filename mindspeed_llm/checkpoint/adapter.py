"""Owns low-rank adapters outside of a model: their factors, what they add to weights that are read,
and how a LoRA checkpoint of ours holds them. It knows neither modules nor PEFT's files.

A checkpoint of a LoRA run holds the adapter's tensors alone and says which weights they belong to:
where these were, and the hash of what is in them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint import ranks
from mindspeed_llm.checkpoint.directory import CheckpointDir, find_checkpoint, is_checkpoint_root
from mindspeed_llm.checkpoint.store import Stored, TensorSource
from mindspeed_llm.checkpoint.tracker import find_foreign
from mindspeed_llm.config.tuning import TARGETS, LoraConfig
from mindspeed_llm.errors import CheckpointError

SECTION = "model"
A, B = "adapter.lora_a", "adapter.lora_b"
_LAYERS = "decoder.layers."
_MODULES = {
    "linear_qkv": "self_attention.linear_qkv",
    "linear_proj": "self_attention.linear_proj",
    "linear_fc1": "mlp.linear_fc1",
    "linear_fc2": "mlp.linear_fc2",
}
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_HASHED = 2**25  # elements read at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """The weights that an adapter belongs to: the directory, and `weights_sha256` of them.

    `files` are name and sha256 of each weight file of a checkpoint of ours, whose manifest lists
    them: where they are the same the content need not be hashed again. Empty for other directories.
    """

    path: Path
    sha256: str
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """A whole low-rank adapter in memory, in the row order of megatron-core's weights.

    Attributes:
        config: its shape. Of a PEFT adapter whose parts of a fused layer have an A of their own,
            the factors have a multiple of `config.rank`.
        factors: (target, layer) -> (A [rank, in], B [out, rank]), floating point, on the CPU.
        base: what it was trained on, where that is known.
    """

    config: LoraConfig
    factors: Mapping[tuple[str, int], tuple[torch.Tensor, torch.Tensor]]
    base: Base | None = None

    def delta(
        self, key: str, layer: int, rows: slice, columns: slice, device: torch.device
    ) -> torch.Tensor | None:
        """What is added to a box of global weight `key`, float32; None where that is nothing."""
        module, _, part = key.removeprefix(_LAYERS).rpartition(".")
        target = module.rpartition(".")[2]
        if part != "weight" or _MODULES.get(target) != module:
            return None
        pair = self.factors.get((target, layer))
        if pair is None:
            return None
        a, b = pair[0][:, columns].float(), pair[1][rows].float()
        return (b.to(device) @ a.to(device)) * self.config.scale

    def source(self, layers: int) -> TensorSource:
        """The factors as the global tensors of a model's adapters, to fill them from.

        Raises:
            CheckpointError: a layer has none, or another rank, so that training cannot go on.
        """
        return _Factors(self, layers)


class _Factors:
    """See `Adapter.source`."""

    def __init__(self, adapter: Adapter, layers: int) -> None:
        self.tensors: dict[str, Stored] = {}
        self._whole: dict[str, torch.Tensor] = {}
        for target in adapter.config.targets:
            pairs = [adapter.factors.get((target, layer)) for layer in range(layers)]
            rank = adapter.config.rank
            if any(pair is None or len(pair[0]) != rank for pair in pairs):
                raise CheckpointError(
                    f"the adapter has not one A of rank {rank} for {target} in every layer; here "
                    "q, k and v, and gate and up, share theirs. Merge it (convert_ckpt.py "
                    "--lora-load) and train a new adapter on the result"
                )
            for name, whole in zip((A, B), zip(*pairs, strict=True), strict=True):
                key = f"{_LAYERS}{_MODULES[target]}.{name}"
                self._whole[key] = torch.stack(list(whole))
                self.tensors[key] = Stored(SECTION, tuple(self._whole[key].shape), whole[0].dtype)

    def read(self, key: str, offset: Sequence[int], out: torch.Tensor) -> None:
        """See `TensorSource`."""
        box = tuple(slice(o, o + n) for o, n in zip(offset, out.shape, strict=True))
        with torch.no_grad():
            out.copy_(self._whole[key][box])


class MergedSource:
    """Weights with an adapter added as they are read, W + alpha / rank * B A in float32.

    Each reader adds what its own box needs, so it serves any layout and holds no second copy.

    Args:
        dtype: how the weights claim to be stored; None: as they are.
    """

    def __init__(
        self, base: TensorSource, adapter: Adapter, dtype: torch.dtype | None = None
    ) -> None:
        self._base, self._adapter = base, adapter
        self.tensors: Mapping[str, Stored] = {
            key: dataclasses.replace(stored, dtype=dtype or stored.dtype)
            for key, stored in base.tensors.items()
        }

    def read(self, key: str, offset: Sequence[int], out: torch.Tensor) -> None:
        """See `TensorSource`."""
        if not key.startswith(_LAYERS) or out.dim() != 3:
            self._base.read(key, offset, out)
            return
        sums = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        self._base.read(key, offset, sums)
        rows, columns = (slice(o, o + n) for o, n in zip(offset[1:], out.shape[1:], strict=True))
        for number in range(out.shape[0]):
            added = self._adapter.delta(key, offset[0] + number, rows, columns, out.device)
            if added is not None:
                sums[number] += added
        with torch.no_grad():
            out.copy_(sums)


def weights_sha256(source: TensorSource, vocab_size: int) -> str:
    """Hash of what the weights are, the same for every format, layout and place they are stored in.

    The ranks share the work; every rank calls it and has the result. Padding of the vocabulary
    does not count, the stored dtype does.
    """
    units = [
        (key, layer)
        for key, stored in sorted(source.tensors.items())
        if stored.section == SECTION
        for layer in (range(stored.shape[0]) if key.startswith(_LAYERS) else (None,))
    ]
    mine: dict[str, str] = {}
    with ranks.together("reading the base weights"):
        for key, layer in units[ranks.rank() :: ranks.world_size()]:
            mine[f"{key}[{layer}]"] = _tensor_sha256(source, key, layer, vocab_size)
    everything = {name: digest for part in ranks.gather(mine) for name, digest in part.items()}
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(everything.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _tensor_sha256(source: TensorSource, key: str, layer: int | None, vocab_size: int) -> str:
    stored = source.tensors[key]
    lead = () if layer is None else (layer,)
    shape = stored.shape[len(lead) :]
    if key in _VOCABULARY:
        shape = (vocab_size, *shape[1:])
    digest = hashlib.sha256(f"{stored.dtype} {list(shape)}".encode())
    step = max(1, _HASHED // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        size = (min(step, shape[0] - start), *shape[1:])
        block = torch.empty((*(1 for _ in lead), *size), dtype=stored.dtype)
        source.read(key, (*lead, start, *(0 for _ in shape[1:])), block)
        digest.update(memoryview(block.view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def facts(config: LoraConfig, base: Base) -> dict[str, Any]:
    """What a LoRA checkpoint says of itself, in `common.json`; `lora_of` reads it."""
    return dataclasses.asdict(config) | {
        "targets": list(config.targets),
        "base": {
            "path": str(base.path.absolute()),
            "sha256": base.sha256,
            "files": dict(base.files),
        },
    }


def lora_of(checkpoint: CheckpointDir) -> tuple[LoraConfig, Base] | None:
    """Shape and base of the adapter that a checkpoint of ours holds; None: it holds whole weights.

    Raises:
        CheckpointError: it says something that makes no sense.
    """
    said = checkpoint.common()["about"].get("lora")
    if said is None:
        return None
    try:
        base = Base(
            path=Path(said["base"]["path"]),
            sha256=str(said["base"]["sha256"]),
            files=dict(said["base"]["files"]),
        )
        config = LoraConfig(
            rank=int(said["rank"]),
            alpha=float(said["alpha"]),
            dropout=float(said["dropout"]),
            targets=tuple(said["targets"]),
        )
        if config.rank < 1 or not config.targets or set(config.targets) - set(TARGETS):
            raise ValueError(f"{said!r:.200}")
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(
            f"{checkpoint.path}: malformed facts on its adapter ({err})"
        ) from None
    return config, base


def is_lora_checkpoint(root: Path) -> bool:
    """Whether `root` is a checkpoint of ours that holds an adapter only."""
    return (
        is_checkpoint_root(root)
        and find_foreign(root) is None
        and lora_of(find_checkpoint(root)) is not None
    )


def read_lora(checkpoint: CheckpointDir) -> Adapter:
    """The adapter that a LoRA checkpoint holds; its files must have been verified.

    Raises:
        CheckpointError: tensors are missing or of another shape.
    """
    found = lora_of(checkpoint)
    assert found is not None, f"{checkpoint.path}: whole weights"
    config, base = found
    reader = checkpoint.reader()
    factors = {}
    try:
        for target in config.targets:
            a, b = (_whole(reader, f"{_LAYERS}{_MODULES[target]}.{name}") for name in (A, B))
            if a.shape[:2] != (b.shape[0], config.rank) or b.shape[2] != config.rank:
                raise CheckpointError(f"{checkpoint.path}: {target} has an adapter of shapes "
                                      f"{list(a.shape)} and {list(b.shape)}")  # fmt: skip
            factors |= {(target, layer): pair for layer, pair in enumerate(zip(a, b, strict=True))}
    except KeyError as err:
        raise CheckpointError(f"{checkpoint.path}: {err} is missing") from None
    finally:
        reader.close()
    return Adapter(config=config, factors=factors, base=base)


def _whole(source: TensorSource, key: str) -> torch.Tensor:
    stored = source.tensors[key]
    out = torch.empty(stored.shape, dtype=stored.dtype)
    source.read(key, (0,) * len(stored.shape), out)
    return out


def targets_in(names: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """The weights among GPTModel's parameter `names` that an adapter can belong to, each as
    (name, target, layer)."""
    for name in names:
        if name.startswith(_LAYERS) and name.endswith(".weight"):
            layer, _, module = name.removeprefix(_LAYERS).removesuffix(".weight").partition(".")
            target = module.rpartition(".")[2]
            if _MODULES.get(target) == module:
                yield name, target, int(layer)
