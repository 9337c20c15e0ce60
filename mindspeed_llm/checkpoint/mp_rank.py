"""Owns reading the older checkpoints of Megatron-LM and MindSpeed-LLM, a pickle for each rank.

mp_rank_XX[_YYY]/model_optim_rng.pt holds, for TP rank XX and PP rank YYY, the local tensors under
`model`, or `model0`, `model1`, ... with interleaved stages. Here they become boxes of the global
tensors. Optimizer and schedule are left alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.enums import AttnBackend

from mindspeed_llm.checkpoint.hf_source import global_name, global_shape
from mindspeed_llm.checkpoint.pickled import PickledFile, check_trusted
from mindspeed_llm.checkpoint.store import Chunk, ChunkReader, Stored, merge_indexes
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.names import NameRule, expand
from mindspeed_llm.models.registry import rules_of
from mindspeed_llm.models.shapes import local_shape, mcore_shape

FILE = "model_optim_rng.pt"
# In the arguments of the run that lie beside the tensors; enumerations and a plain record.
_ALLOWED = (argparse.Namespace, ModelType, AttnBackend, signal.Signals)
_LAYER = re.compile(r"decoder\.layers\.([0-9]{1,6})\.(.+)")
# Other names of the same tensors: Transformer Engine fuses norms, and MindSpeed-LLM has Gemma's
# norms behind a sub-layer in the layer.
_ALIASES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    "post_attn_norm.weight": "self_attention.linear_proj.post_layernorm.weight",
    "post_mlp_layernorm.weight": "mlp.linear_fc2.post_layernorm.weight",
}


@dataclasses.dataclass(frozen=True)
class _Rank:
    path: Path
    tensor: int
    pipeline: int


class MpRankReader(ChunkReader):
    """The weights of an mp_rank checkpoint, as a `TensorSource`.

    Args:
        directory: with mp_rank_*.
        model: what its config.json says; the formats do not.
        trusted: the user said --trust-pickle.

    Raises:
        CheckpointError: not trusted, ranks missing, damaged, or tensors of another model.
    """

    def __init__(self, directory: Path, model: ModelConfig, *, trusted: bool) -> None:
        self.directory = directory
        ranks = _ranks(directory)
        check_trusted(ranks[0].path, trusted)
        if model.experts is not None:
            raise CheckpointError(f"{directory}: mp_rank checkpoints of models with experts are "
                                  "not read; export it to Hugging Face weights first")  # fmt: skip
        self._model = model
        self._layout = ParallelConfig(
            tensor_model_parallel_size=1 + max(r.tensor for r in ranks),
            pipeline_model_parallel_size=1 + max(r.pipeline for r in ranks),
        )
        wanted = (self._layout.tensor_model_parallel_size,
                  self._layout.pipeline_model_parallel_size)  # fmt: skip
        if len(ranks) != wanted[0] * wanted[1]:
            raise CheckpointError(f"{directory}: {len(ranks)} ranks, but their numbers promise TP "
                                  f"{wanted[0]} x PP {wanted[1]}; copy the rest")  # fmt: skip
        self._layout.check_model(model)
        self._rules = {r.mcore: r for r in expand(rules_of(model), model.num_layers)}
        self._ranks: dict[str, PickledFile] = {}
        super().__init__(directory, merge_indexes([self._share(rank) for rank in ranks]))

    def _share(self, rank: _Rank) -> dict[str, Stored]:
        """This rank's boxes."""
        name = str(rank.path.relative_to(self.directory))
        file = self._ranks[name] = PickledFile(rank.path, _chunks_of_model, allow=_ALLOWED)
        count = 1 + max((int(n.partition(":")[0]) for n in file.entries), default=0)
        unknown, out = [], {}
        for local, entry in file.entries.items():
            chunk, _, key = local.partition(":")
            rule = self._rules.get(self._global(key, rank.pipeline, int(chunk), count))
            if rule is None:
                if not self._redundant(key, rank):
                    unknown.append(key)
                continue
            boxes = list(self._boxes(rule, rank.tensor, entry.shape, name, local))
            shape = self._padded(rule)
            old = out.get(global_name(rule)[0])
            if old is not None and old.dtype != entry.dtype:
                raise CheckpointError(f"{rank.path}: {key} is {entry.dtype}, other layers have "
                                      f"{old.dtype}")  # fmt: skip
            chunks = (old.chunks if old else ()) + tuple(boxes)
            out[global_name(rule)[0]] = Stored("model", shape, entry.dtype, chunks)
        if unknown:
            raise CheckpointError(f"{rank.path}: unknown for this {self._model.family} model: "
                                  f"{', '.join(sorted(unknown)[:12])}")  # fmt: skip
        return out

    def _global(self, key: str, stage: int, chunk: int, chunks: int) -> str:
        """Name in the whole model; `chunk` of `chunks` that this pipeline stage has."""
        match = _LAYER.fullmatch(key)
        if match is None:
            return key
        share = self._model.num_layers // chunks
        each = share // self._layout.pipeline_model_parallel_size
        layer = chunk * share + stage * each + int(match[1])
        return f"decoder.layers.{layer}.{_ALIASES.get(match[2], match[2])}"

    def _redundant(self, key: str, rank: _Rank) -> bool:
        """Whether it is the last stage's copy of a tied embedding, or follows from config.json."""
        tied = key == "output_layer.weight" and self._model.tie_word_embeddings
        return tied or key.endswith("rotary_pos_emb.inv_freq")

    def _padded(self, rule: NameRule) -> tuple[int, ...]:
        shape = global_shape(rule, self._model)
        if not rule.vocab:
            return shape
        files = list(self._ranks.values())
        rows = next(e.shape[0] for f in files for n, e in f.entries.items()
                    if n.partition(":")[2] == rule.mcore)  # fmt: skip
        return (rows * self._layout.tensor_model_parallel_size, *shape[1:])

    def _boxes(
        self, rule: NameRule, rank: int, found: tuple[int, ...], file: str, name: str
    ) -> Iterator[Chunk]:
        """Where the local tensor lies in the global one; nothing for a further replica."""
        lead = global_name(rule)[1]
        ones = tuple(1 for _ in lead)
        local, whole = local_shape(rule, self._model, self._layout), mcore_shape(rule, self._model)
        if rule.vocab:
            local = (found[0], *local[1:])
            whole = (found[0] * self._layout.tensor_model_parallel_size, *whole[1:])
        if tuple(found) != tuple(local):
            raise CheckpointError(f"{self.directory / file}: {name.partition(':')[2]} has shape "
                                  f"{list(found)}, expected {list(local)}")  # fmt: skip
        axis = next((i for i, (a, b) in enumerate(zip(local, whole, strict=True)) if a != b), None)
        if axis is None:
            if rank == 0:
                yield Chunk(file, f"{name}@0", (*lead, *(0 for _ in local)), (*ones, *local))
            return
        parts = 2 if rule.op == "gate_up" else 1  # each rank has its gate, then its up
        size = local[axis] // parts
        shape = tuple(size if i == axis else n for i, n in enumerate(local))
        for part in range(parts):
            begin = (part * whole[axis] // parts) + rank * size
            offset = tuple(begin if i == axis else 0 for i in range(len(local)))
            yield Chunk(file, f"{name}@{part * size}", (*lead, *offset), (*ones, *shape))

    def _part(
        self, stored: Stored, chunk: Chunk, offset: tuple[int, ...], out: torch.Tensor
    ) -> None:
        name, _, start = chunk.name.rpartition("@")
        file = self._ranks[chunk.file]
        lead = len(chunk.shape) - len(file.entries[name].shape)
        begin = list(offset[lead:])
        begin[0] += int(start)
        file.read_box(name, begin, out.shape[lead:], out[(0,) * lead])


def _ranks(directory: Path) -> list[_Rank]:
    out = []
    for path in sorted(directory.glob(f"mp_rank_*/{FILE}")):
        match = re.fullmatch(r"mp_rank_([0-9]{2,4})(?:_([0-9]{3,4}))?", path.parent.name)
        if match is None:
            raise CheckpointError(f"{path.parent}: expected mp_rank_XX or mp_rank_XX_YYY; expert "
                                  "parallel ranks are not read")  # fmt: skip
        out.append(_Rank(path, int(match[1]), int(match[2] or 0)))
    return out


def _chunks_of_model(content: Any) -> dict[str, Any]:
    """One table of the tensors of all model chunks: `0:name`, `1:name`."""
    if not isinstance(content, dict):
        return {}
    names = ["model"] if "model" in content else sorted(
        (n for n in content if re.fullmatch(r"model[0-9]+", str(n))), key=lambda n: int(n[5:])
    )  # fmt: skip
    return {
        f"{number}:{key}": value
        for number, name in enumerate(names)
        for key, value in content[name].items()
        if isinstance(value, torch.Tensor) or not key.endswith("_extra_state")
    }
