"""Owns how one Megatron-Core tensor is made of Hugging Face tensors and taken apart again.

Pure tensor shuffling in both directions, bit-exact; it knows neither files nor process groups.
Names contain `{i}` for the 0-based layer index where the tensor belongs to a layer.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.errors import CheckpointError

Op = Literal["copy", "qkv", "fused_qkv", "gate_up"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameRule:
    """One row of a family's name table.

    Attributes:
        mcore: name in `GPTModel.state_dict()` of the whole model (one process), e.g.
            `decoder.layers.{i}.self_attention.linear_qkv.weight`.
        hf: the Hugging Face names it is made of: one for `copy` and `fused_qkv`, (q, k, v) for
            `qkv`, (gate, up) for `gate_up`.
        op: `copy`; `qkv`: rows grouped per query group as [q..., k, v] (megatron-core's
            SelfAttention.linear_qkv); `fused_qkv`: the same from one tensor with the rows of q,
            then k, then v (Phi-3); `gate_up`: rows [gate; up] (MLP.linear_fc1, gated).
        vocab: dim 0 is the vocabulary, padded in Megatron-Core and cut to `vocab_size` here.
        layers: the layers that have it, where `{i}` is in the name; None: all.
        experts: how many there are of it in a layer, where `{e}` is in the name.
        stacked: in a checkpoint the layers are one tensor with a leading axis, as megatron-core
            has it where all layers are alike; else each layer has a name of its own.
        fused: of a norm before a linear layer: a checkpoint has it under that layer's name.
    """

    mcore: str
    hf: tuple[str, ...]
    op: Op = "copy"
    vocab: bool = False
    layers: tuple[int, ...] | None = None
    experts: int = 0
    stacked: bool = True
    fused: bool = False

    def __post_init__(self) -> None:
        wanted = {"copy": 1, "qkv": 3, "fused_qkv": 1, "gate_up": 2}[self.op]
        assert len(self.hf) == wanted, f"{self.mcore}: {self.op} takes {wanted} names"
        assert "{e}" not in self.mcore or self.experts, f"{self.mcore}: how many?"

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.mcore

    def is_in(self, layer: int) -> bool:
        """Whether layer `layer` (0-based) has this tensor; of rules with `{i}`."""
        return self.per_layer and (self.layers is None or layer in self.layers)

    def written_out(self, layer: int) -> list[NameRule]:
        """The rules of one layer, with `{i}` and `{e}` filled in."""
        return [
            dataclasses.replace(self, mcore=self.mcore.format(i=layer, e=expert),
                                hf=tuple(name.format(i=layer, e=expert) for name in self.hf))
            for expert in range(self.experts or 1)
        ]  # fmt: skip


def hf_shapes(rule: NameRule, model: ModelConfig, mcore_shape: tuple[int, ...]) -> list[tuple]:
    """Shapes of `rule.hf` given the whole (unpadded) mcore tensor's shape, in order."""
    if rule.op in ("copy", "fused_qkv"):
        return [tuple(mcore_shape)]
    rest = tuple(mcore_shape[1:])
    if rule.op == "gate_up":
        return [(mcore_shape[0] // 2, *rest)] * 2
    return [(rows, *rest) for rows in _qkv_rows(model)]


def _qkv_rows(model: ModelConfig) -> tuple[int, int, int]:
    """Rows of q, k and v."""
    kv = model.num_query_groups * model.head_dim
    return model.num_attention_heads * model.head_dim, kv, kv


@dataclasses.dataclass(frozen=True)
class Span:
    """Consecutive rows that a Megatron-Core tensor and one of its Hugging Face tensors share.

    Attributes:
        part: index into `NameRule.hf`.
        hf: the first of these rows there; `mcore`: in the Megatron-Core tensor.
        rows: how many.
    """

    part: int
    hf: int
    mcore: int
    rows: int


def spans(rule: NameRule, model: ModelConfig, rows: int) -> list[Span]:
    """How the rows of the tensors of `rule` lie, in the order of the (unpadded) Megatron-Core
    tensor, which has `rows`; each row is in one span."""
    if rule.op == "copy":
        runs = [(0, rows)]
    elif rule.op == "gate_up":
        runs = [(0, rows // 2), (1, rows // 2)]
    else:
        groups, dim = model.num_query_groups, model.head_dim
        runs = [(0, model.num_attention_heads // groups * dim), (1, dim), (2, dim)] * groups
    q, k, _ = _qkv_rows(model)
    begins = [0, q, q + k] if rule.op == "fused_qkv" else [0, 0, 0]
    out, position = [], 0
    for part, count in runs:
        out.append(Span(0 if rule.op == "fused_qkv" else part, begins[part], position, count))
        begins[part] += count
        position += count
    assert position == rows, f"{rule.mcore}: {position} rows of {rows}"
    return out


def to_mcore(rule: NameRule, model: ModelConfig, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Whole Megatron-Core tensor from the Hugging Face tensors of `rule.hf`, same dtype."""
    places = spans(rule, model, sum(len(tensor) for tensor in tensors))
    return torch.cat([tensors[s.part][s.hf : s.hf + s.rows] for s in places])


def to_hf(rule: NameRule, model: ModelConfig, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Inverse of `to_mcore`: contiguous Hugging Face tensors in the order of `rule.hf`."""
    places = sorted(spans(rule, model, len(tensor)), key=lambda s: (s.part, s.hf))
    return [
        torch.cat([tensor[s.mcore : s.mcore + s.rows] for s in places if s.part == part])
        for part in range(len(rule.hf))
    ]


def expand(rules: tuple[NameRule, ...], num_layers: int) -> list[NameRule]:
    """The table with `{i}` and `{e}` written out, layer by layer; refuses a name used twice."""
    out: list[NameRule] = [r for r in rules if not r.per_layer]
    for i in range(num_layers):
        out += [written for r in rules if r.is_in(i) for written in r.written_out(i)]
    seen: set[str] = set()
    for name in (n for r in out for n in (r.mcore, *r.hf)):
        if name in seen:
            raise CheckpointError(f"the name table uses {name} twice")
        seen.add(name)
    return out
