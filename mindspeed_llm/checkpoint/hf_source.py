"""Owns the reading of a Hugging Face directory's safetensors as megatron-core's global tensors.

Names come from the family's table, shapes from the ModelConfig; every file and tensor is checked
before the first is read. It writes nothing and builds no model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from mindspeed_llm.checkpoint.assets import check_links
from mindspeed_llm.checkpoint.pickled import PickledFile, check_trusted
from mindspeed_llm.checkpoint.store import Planned, Stored
from mindspeed_llm.checkpoint.tensor_file import Entry, TensorFile
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.models.names import NameRule, expand, hf_shapes, spans
from mindspeed_llm.models.registry import FAMILIES, read_model, rules_of
from mindspeed_llm.models.shapes import mcore_shape

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
SAFE = ".safetensors"
BAD = ("", ".", "..")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_INDEX_LIMIT = 64 * 2**20
_SHOWN = 12
_OPEN_FILES = 3  # the rows of q, k and v alternate, and may lie in as many files
_LAYERS = "decoder.layers."
_EXPERT = ".local_experts."
# megatron-core's layer specs store the norms before a linear layer under that layer's name, so
# that fused and plain norms share checkpoints (`sharded_state_dict_keys_map`).
_RENAMED = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_TIED_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_DERIVED = ".rotary_emb.inv_freq"  # a buffer that old files hold; it follows from config.json


def global_name(rule: NameRule) -> tuple[str, tuple[int, ...]]:
    """Key in a sharded state dict and index on its leading axes, of a rule that is written out.

    `decoder.layers.3.mlp.linear_fc2.weight` -> (`decoder.layers.mlp.linear_fc2.weight`, (3,)): the
    layers of a homogeneous stack are one global tensor, and so are the experts of a layer,
    `decoder.layers.3.mlp.experts.local_experts.7.linear_fc1.weight` ->
    (`decoder.layers.mlp.experts.experts.linear_fc1.weight`, (3, 7)).
    """
    if not rule.mcore.startswith(_LAYERS):
        return rule.mcore, ()
    number, rest = rule.mcore[len(_LAYERS) :].split(".", 1)
    for plain, stored in _RENAMED.items():
        if rule.fused and rest.startswith(plain):
            rest = stored + rest[len(plain) :]
    lead = (int(number),) if rule.stacked else ()
    if rule.experts:
        head, _, tail = rest.partition(_EXPERT)
        expert, _, tail = tail.partition(".")
        rest, lead = f"{head}.experts.{tail}", (*lead, int(expert))
    return _LAYERS + (rest if rule.stacked else f"{number}.{rest}"), lead


def global_shape(rule: NameRule, model: ModelConfig) -> tuple[int, ...]:
    """Shape of the global tensor that `rule` is a part of, with its leading axes."""
    layers = (model.num_layers,) if rule.mcore.startswith(_LAYERS) and rule.stacked else ()
    experts = (rule.experts,) if rule.experts else ()
    return (*layers, *experts, *mcore_shape(rule, model))


def planned_of(rule: NameRule, model: ModelConfig, dtype: torch.dtype) -> Planned:
    """The box of a checkpoint's global tensor that `rule` fills, unpadded."""
    key, lead = global_name(rule)
    shape = mcore_shape(rule, model)
    offset, size = (*lead, *(0 for _ in shape)), (*(1 for _ in lead), *shape)
    return Planned(key, "model", global_shape(rule, model), dtype, offset, size)


class HFWeights:
    """The tensors of a Hugging Face directory, checked against the family's name table.

    Args:
        trust_pickle: read .bin files where there are no safetensors; see `pickled`.

    Raises:
        CheckpointError: no weights, a hostile or wrong index, or tensors that are missing,
            unknown, of another shape or of no floating-point dtype; lists their names.
    """

    def __init__(self, directory: Path, *, trust_pickle: bool = False) -> None:
        self.directory = Path(directory)
        self.model = read_model(self.directory)
        check_links(self.directory)
        self.rules = expand(rules_of(self.model), self.model.num_layers)
        self._where: dict[str, tuple[Path, Entry]] = {}
        self._stored: dict[str, str] = {}  # names in the files, where they describe more
        self._others: list[str] = []  # of parts that are no language model
        for path, listed in _weight_files(self.directory, trust_pickle):
            file = _open(path)
            entries = file.entries
            file.close()
            if listed is not None and listed != set(entries):
                odd = sorted(listed ^ set(entries))
                raise CheckpointError(f"{path}: the index and the file disagree on {odd[0]} "
                                      f"({len(odd)} names in all)")  # fmt: skip
            for stored, entry in entries.items():
                name = FAMILIES[self.model.family].text_name(stored)
                if name is None:
                    self._others.append(stored)
                    continue
                if name in self._where:
                    raise CheckpointError(f"{path}: {stored} is in {self._where[name][0].name} too")
                self._where[name], self._stored[name] = (path, entry), stored
        self.skipped = self._check_names()
        self._dtypes = self._common_dtypes()
        self._open: dict[Path, TensorFile | PickledFile] = {}

    def _check_names(self) -> list[str]:
        """Compare with the name table; the names of redundant tensors that are not converted."""
        wanted = {
            name: shape
            for rule in self.rules
            for name, shape in zip(
                rule.hf, hf_shapes(rule, self.model, mcore_shape(rule, self.model)), strict=True
            )
        }
        skipped = [n for n in self._where if n not in wanted and n.endswith(_DERIVED)]
        if self.model.tie_word_embeddings and _TIED_HEAD in self._where:
            skipped.append(_TIED_HEAD)
        lines = _listed("missing", wanted.keys() - self._where.keys())
        lines += _listed("unknown for this family", self._where.keys() - wanted.keys() - {*skipped})
        lines += _listed("wrong", (
            f"{name} is {entry.dtype} {list(entry.shape)}, expected {list(wanted[name])} in fp32, "
            "bf16 or fp16"
            for name, (_, entry) in self._where.items()
            if name in wanted and (entry.shape != tuple(wanted[name]) or entry.dtype not in FLOATS)
        ))  # fmt: skip
        if lines:
            raise CheckpointError(f"{self.directory}: the weights do not fit config.json "
                                  f"({self.model.family}): " + "; ".join(lines))  # fmt: skip
        return skipped + self._others

    def dtype_of(self, key: str) -> torch.dtype:
        """The one dtype of all tensors that global tensor `key` is made of."""
        return self._dtypes[key]

    def _common_dtypes(self) -> dict[str, torch.dtype]:
        found: dict[str, tuple[torch.dtype, str]] = {}
        for rule in self.rules:
            key = global_name(rule)[0]
            for name in rule.hf:
                dtype = self._where[name][1].dtype
                known, first = found.setdefault(key, (dtype, name))
                if known != dtype:
                    raise CheckpointError(f"{self.directory}: {first} is {known}, {name} is {dtype}"
                                          "; layers of one dtype are expected")  # fmt: skip
        return {key: dtype for key, (dtype, _) in found.items()}

    def nbytes(self) -> int:
        """Bytes of all tensors that are converted."""
        return sum(e.end - e.begin for n, (_, e) in self._where.items() if n not in self.skipped)

    def check_tied_head(self) -> None:
        """Raise CheckpointError if a tied model's file has an output layer of its own."""
        if _TIED_HEAD not in self.skipped:
            return
        head, embedding = (self._where[name][1] for name in (_TIED_HEAD, _EMBEDDING))
        same = (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
        rows = 4096
        for start in range(0, self.model.vocab_size, rows) if same else ():
            box = (start, 0), (min(rows, self.model.vocab_size - start), self.model.hidden_size)
            same = same and torch.equal(
                self.read_box(_TIED_HEAD, *box), self.read_box(_EMBEDDING, *box)
            )
        if not same:
            raise CheckpointError(
                f"{self.directory}: config.json says tie_word_embeddings, but {_TIED_HEAD} "
                f"differs from {_EMBEDDING}; set tie_word_embeddings to false if the output "
                "layer is one of its own"
            )

    def read_box(
        self,
        name: str,
        offset: Sequence[int],
        shape: Sequence[int],
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A box of one Hugging Face tensor, in `out` if given, cast to its dtype."""
        path, entry = self._where[name]
        if len(entry.shape) != len(shape):
            raise CheckpointError(f"{path}: {name} has shape {list(entry.shape)}")
        if path not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = _open(path)
        return self._open[path].read_box(self._stored[name], offset, shape, out)

    def close(self) -> None:
        """Close the files that are open; the next `read_box` opens what it needs."""
        for file in self._open.values():
            file.close()
        self._open.clear()


class HFSource:
    """A Hugging Face directory as a `TensorSource`: models of any layout load from it directly."""

    def __init__(self, directory: Path, *, trust_pickle: bool = False) -> None:
        self.weights = HFWeights(directory, trust_pickle=trust_pickle)
        self.weights.check_tied_head()
        self.tensors: dict[str, Stored] = {}
        self._rules: dict[tuple[str, tuple[int, ...]], NameRule] = {}
        self._leads: dict[str, int] = {}
        for rule in self.weights.rules:
            key, lead = global_name(rule)
            shape = global_shape(rule, self.weights.model)
            self.tensors[key] = Stored("model", shape, self.weights.dtype_of(key))
            self._rules[key, lead] = rule
            self._leads[key] = len(lead)

    def read(self, key: str, offset: Sequence[int], out: torch.Tensor) -> None:
        """Fill `out` with the box of global tensor `key` at `offset`; see `TensorSource`."""
        count = self._leads[key]
        begin, inner = offset[:count], offset[count:]
        for index in itertools.product(*(range(size) for size in out.shape[:count])):
            lead = tuple(o + i for o, i in zip(begin, index, strict=True))
            self._read(self._rules[key, lead], inner, out[index])

    def _read(self, rule: NameRule, offset: Sequence[int], out: torch.Tensor) -> None:
        rows = mcore_shape(rule, self.weights.model)[0]
        first, end = offset[0], min(offset[0] + out.shape[0], rows)  # rows behind it are padding
        for span in spans(rule, self.weights.model, rows):
            begin, count = max(first, span.mcore), span.mcore + span.rows
            count = min(end, count) - begin
            if count > 0:
                box = (span.hf + begin - span.mcore, *offset[1:])
                part = out[begin - first : begin - first + count]
                self.weights.read_box(rule.hf[span.part], box, part.shape, part)

    def close(self) -> None:
        """Close the files; the next `read` opens them again."""
        self.weights.close()


def _open(path: Path) -> TensorFile | PickledFile:
    return TensorFile(path) if path.suffix == SAFE else PickledFile(path)


def _weight_files(directory: Path, trust_pickle: bool) -> list[tuple[Path, set[str] | None]]:
    """The weight files, each with the names that the index promises in it (None: no index)."""
    safe = any(directory.glob(f"*{SAFE}")) or (directory / WEIGHTS_INDEX).is_file()
    suffix, index = (SAFE, WEIGHTS_INDEX) if safe else (".bin", PICKLE_INDEX)
    if not (directory / index).is_file():
        found = sorted(directory.glob(f"*{suffix}" if safe else "pytorch_model*.bin"))
        if not found:
            found = sorted([*directory.glob("*.pt"), *directory.glob("*.pth")])
        if not found:
            raise CheckpointError(f"{directory}: no safetensors weights; expected {WEIGHTS} or "
                                  f"{WEIGHTS_INDEX}")  # fmt: skip
        if not safe:
            check_trusted(found[0], trust_pickle)
        if len(found) > 1:
            raise CheckpointError(f"{directory}: {len(found)} {found[0].suffix[1:]} files, but no "
                                  f"{index} that says which belong together")  # fmt: skip
        return [(found[0], None)]
    if not safe:
        check_trusted(directory / index, trust_pickle)
    by_file: dict[str, set[str]] = {}
    for name, file in _weight_map(directory / index).items():
        if not isinstance(file, str) or Path(file).name != file or file in BAD or "\0" in file:
            raise CheckpointError(f"{directory / index}: {name} lies in {file!r:.120}; expected "
                                  "the name of a file in the same directory")  # fmt: skip
        if not file.endswith(suffix):
            raise CheckpointError(f"{directory / index}: {name} lies in {file!r:.120}; expected a "
                                  f"{suffix} file")  # fmt: skip
        by_file.setdefault(file, set()).add(name)
    return [(directory / file, names) for file, names in sorted(by_file.items())]


def _weight_map(index: Path) -> dict[str, Any]:
    size = index.stat().st_size
    if size > _INDEX_LIMIT:
        raise CheckpointError(f"{index}: {size} bytes; too large for an index")
    try:
        value = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(f"{index}: malformed ({err!r:.120}); expected a weight_map") from None
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{index}: weight_map is no table of names")
    return value


def _listed(what: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    if not ordered:
        return []
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return [f"{what} ({len(ordered)}): {', '.join(ordered[:_SHOWN])}{more}"]
