"""Owns forward passes of a model whose layers may lie on several pipeline stages; knows nothing of
prompts or sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from mindspeed_llm.inference.decode import Step
from mindspeed_llm.inference.memory import KeyValues


class Stages:
    """This rank's part of the model, with what is needed to pass hidden states on.

    Args:
        model: in evaluation mode, on `device`, with its weights loaded and adapters merged.
        device: where token ids go.
        context: longest sequence in tokens.
    """

    def __init__(self, model: GPTModel, device: torch.device, context: int) -> None:
        assert not model.training, "a model that is trained draws dropout; call eval()"
        self.model, self.device, self.context = model, device, context
        config = model.config
        assert not config.sequence_parallel, "decoding one token cannot be split over its sequence"
        self.hidden_size: int = config.hidden_size
        self.dtype: torch.dtype = config.params_dtype
        self.is_first: bool = parallel_state.is_pipeline_first_stage()
        self.is_last: bool = parallel_state.is_pipeline_last_stage()
        self._step = Step(model, context)
        self._shape = self._step.shape(device)

    def memory(self) -> KeyValues:
        """Empty memory for one sequence."""
        return KeyValues(self._shape)

    @torch.inference_mode()
    def step(
        self, parts: Sequence[tuple[KeyValues, Sequence[int]]], wanted: Sequence[int]
    ) -> torch.Tensor | None:
        """New tokens of several sequences, on top of what each one's memory holds.

        Args:
            parts: memory and new ids of each sequence; none is empty.
            wanted: of how many of its last tokens each one's logits are wanted.

        Returns:
            [sum(wanted), vocabulary]; None on every pipeline stage but the last, and where none
            are wanted.
        """
        ids = torch.tensor([token for _, own in parts for token in own], device=self.device)
        x = self._step(ids, [(held, len(own)) for held, own in parts], self._received(len(ids)))
        if not self.is_last:
            self._send(x)
            return None
        chosen: list[int] = []
        end = 0
        for (_, own), count in zip(parts, wanted, strict=True):
            end += len(own)
            chosen += range(end - count, end)
        if not chosen:
            return None
        if len(chosen) < len(x):
            x = x[torch.tensor(chosen, device=self.device)]
        return self._step.logits(x)

    def _received(self, length: int) -> torch.Tensor | None:
        """Hidden states of the stage before, [length, h]; None on the first."""
        if self.is_first:
            return None
        hidden = torch.empty(length, self.hidden_size, dtype=self.dtype, device=self.device)
        dist.recv(hidden, src=parallel_state.get_pipeline_model_parallel_prev_rank())
        return hidden

    def _send(self, output: torch.Tensor) -> None:
        dist.send(output.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
