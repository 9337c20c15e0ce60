"""Owns one forward pass of a model whose layers may lie on several pipeline stages; knows nothing
of prompts or sampling."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.gpt import GPTModel

from mindspeed_llm.inference.decode import Step, single_step


class Stages:
    """This rank's part of the model, with what is needed to pass hidden states on.

    Args:
        model: in evaluation mode, on `device`.
        device: where token ids go.
    """

    def __init__(self, model: GPTModel, device: torch.device) -> None:
        assert not model.training, "a model that is trained draws dropout; call eval()"
        self.model, self.device = model, device
        config = model.config
        assert not config.sequence_parallel, "decoding one token cannot be split over its sequence"
        self.hidden_size: int = config.hidden_size
        self.dtype: torch.dtype = config.params_dtype
        self.is_first: bool = parallel_state.is_pipeline_first_stage()
        self.is_last: bool = parallel_state.is_pipeline_last_stage()
        self._step: Step | None = None
        self._has_step = False

    def _single(self) -> Step | None:
        """The step for one token; made late, when the weights are there."""
        if not self._has_step:
            self._step, self._has_step = single_step(self.model, self.device), True
        return self._step

    def cache(self, rows: int, length: int) -> StaticInferenceContext:
        """Empty KV cache for `rows` sequences of at most `length` tokens."""
        return StaticInferenceContext(rows, length)

    @torch.inference_mode()
    def forward(
        self, ids: torch.Tensor, cache: StaticInferenceContext | None = None
    ) -> torch.Tensor | None:
        """Logits of `ids`, int64 [rows, s].

        With a cache the ids follow what it holds, its offset moves on, and the logits are those of
        the last position, [rows, 1, vocabulary]; without one they are of all positions. None on
        every pipeline stage but the last.
        """
        rows, length = ids.shape
        if length == 1 and cache is not None and (step := self._single()) is not None:
            logits = step(ids.to(self.device), cache)
            cache.sequence_len_offset += 1
            return logits
        start = 0 if cache is None else cache.sequence_len_offset
        ids = ids.to(self.device)
        positions = torch.arange(start, start + length, device=self.device).expand(rows, -1)
        if not self.is_first:
            hidden = torch.empty(
                length, rows, self.hidden_size, dtype=self.dtype, device=self.device
            )
            dist.recv(hidden, src=parallel_state.get_pipeline_model_parallel_prev_rank())
            self.model.set_input_tensor(hidden)
        output = self.model(
            ids, positions, None, inference_context=cache, runtime_gather_output=True
        )
        if cache is not None:
            cache.sequence_len_offset += length
        if self.is_last:
            return output
        dist.send(output.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
        return None
