"""Owns low-rank adapters as modules: what they add to our parallel linear layers, how they are
split over ranks, how they start, and what is trained. Knows no files and no data.

Reference: Hu et al., LoRA (arXiv 2106.09685); initial values and dropout as in Hugging Face's PEFT.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from mindspeed_llm.config.tuning import LoraConfig
from mindspeed_llm.models.linear import GateUpLinear


class LowRank(torch.nn.Module):
    """alpha / rank * B A dropout(x), beside a parallel linear layer that has this as `adapter`.

    Between A and B there are only `rank` numbers a token. Whatever has to be exchanged between
    tensor-parallel ranks is exchanged there, so an adapter adds little communication.

    Column-parallel: A [r, in] is whole on every rank, B [out / tp, r] has this rank's rows.
    Row-parallel: A [r, in / tp] has this rank's columns, B [out, r] is whole.
    With sequence parallelism whole ones see this rank's tokens only: `sequence_parallel` marks
    them, and megatron-core sums their gradients.

    Args:
        config: rank, scale, dropout.
        layer: the linear layer.
        name: of its weight in the whole model; with `seed` it gives A its values, so that these
            are the same in every layout.
        seed: of the run.
    """

    def __init__(
        self,
        config: LoraConfig,
        layer: tensor_parallel.ColumnParallelLinear | RowParallelLinear,
        *,
        name: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.scale, self.dropout = config.scale, config.dropout
        self.row = isinstance(layer, RowParallelLinear)
        self.gated = isinstance(layer, GateUpLinear)
        self.sequence_parallel = bool(layer.config.sequence_parallel)
        size = parallel_state.get_tensor_model_parallel_world_size()
        rank = parallel_state.get_tensor_model_parallel_rank()
        weight = layer.weight
        like = {"dtype": weight.dtype, "device": weight.device}
        a = _initial(config.rank, weight.shape[1] * (size if self.row else 1), f"{seed} {name}")
        if self.row:
            a = a.chunk(size, dim=1)[rank]
        self.lora_a = torch.nn.Parameter(a.contiguous().to(**like))
        self.lora_b = torch.nn.Parameter(torch.zeros(weight.shape[0], config.rank, **like))
        split, whole = (self.lora_a, self.lora_b) if self.row else (self.lora_b, self.lora_a)
        tensor_parallel.set_tensor_model_parallel_attributes(split, True, 1 if self.row else 0, 1)
        whole.sequence_parallel = self.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's input -> what is added to its output; shapes as the layer's own."""
        if self.row:
            inner = F.linear(self._dropped(x), self.lora_a)
            sums = (reduce_scatter_to_sequence_parallel_region if self.sequence_parallel
                    else reduce_from_tensor_model_parallel_region)  # fmt: skip
            return F.linear(sums(inner), self.lora_b) * self.scale
        inner = F.linear(self._dropped(x), self.lora_a)
        if self.sequence_parallel:
            inner = gather_from_sequence_parallel_region(inner, tensor_parallel_output_grad=True)
        else:
            inner = copy_to_tensor_model_parallel_region(inner)  # sums the gradient over ranks
        return F.linear(inner, self.lora_b) * self.scale

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.dropout):
            return x
        # Ranks that hold different columns of x must draw differently, ranks that hold the same
        # must draw alike. With sequence parallelism the whole layer runs under the tracker.
        own = self.row and not self.sequence_parallel
        fork = tensor_parallel.get_cuda_rng_tracker().fork if own else contextlib.nullcontext
        with fork():
            return F.dropout(x, self.dropout)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A and B as parts of global tensors; of a gated layer B is cut as its weight is."""
        axis = {"lora_a": 1} if self.row else {"lora_b": 0}
        state = self.state_dict(prefix="", keep_vars=True)
        sharded = make_sharded_tensors_for_checkpoint(state, prefix, axis, sharded_offsets)
        if self.gated:
            key = f"{prefix}lora_b"
            sharded[key] = apply_swiglu_sharded_factory(sharded[key], sharded_offsets)
        return sharded

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{tuple(self.lora_a.shape)}, {tuple(self.lora_b.shape)}, scale={self.scale:g}"


def _initial(rank: int, columns: int, seed: str) -> torch.Tensor:
    """A's first values, float32 [rank, columns], uniform within 1 / sqrt(columns): PEFT's
    kaiming_uniform_ with a = sqrt(5)."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little") >> 1
    drawn = torch.rand(rank, columns, generator=torch.Generator().manual_seed(number))
    return (2 * drawn - 1) / columns**0.5


def attach(model: GPTModel, config: LoraConfig, *, seed: int) -> None:
    """Freeze every parameter of `model` and give its target layers adapters that add nothing yet.

    Call it on the loaded model, on its device, before the data-parallel wrapper is made, which
    has no gradient buffer for a frozen parameter, and the optimizer no state.
    """
    model.requires_grad_(False)
    for layer in model.decoder.layers:
        number = layer.layer_number - 1
        for parent, target in (
            ("self_attention", "linear_qkv"),
            ("self_attention", "linear_proj"),
            ("mlp", "linear_fc1"),
            ("mlp", "linear_fc2"),
        ):
            if target in config.targets:
                linear = getattr(getattr(layer, parent), target)
                name = f"decoder.layers.{number}.{parent}.{target}.weight"
                linear.adapter = LowRank(config, linear, name=name, seed=seed)


def global_names(model: GPTModel) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters by their names in the whole model, as `--freeze` has them.

    A tied embedding's copy on the last pipeline stage has the embedding's name.
    """
    offset = model.decoder.layers[0].layer_number - 1 if len(model.decoder.layers) else 0
    named = {}
    for name, parameter in model.named_parameters():
        head, layers, rest = name.partition("decoder.layers.")
        if layers and not head:
            number, _, tail = rest.partition(".")
            name = f"{layers}{int(number) + offset}.{tail}"
        if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            name = "embedding.word_embeddings.weight"
        named[name] = parameter
    return named


def freeze(model: GPTModel, trained: set[str]) -> None:
    """Train only the parameters with these names in the whole model."""
    for name, parameter in global_names(model).items():
        parameter.requires_grad_(name in trained)


def keep_gradients_flowing(model: GPTModel) -> None:
    """Let gradients reach trained parameters behind a frozen embedding.

    A recomputed layer whose input needs no gradient gives none to its parameters either
    (megatron-core's checkpointing is an autograd function of its input), and a pipeline stage in
    which nothing is trained has no backward pass at all: so the embedding's output asks for one.
    """

    def ask(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not output.requires_grad:
            return output.requires_grad_()
        return output

    if hasattr(model, "embedding"):
        model.embedding.register_forward_hook(ask)
