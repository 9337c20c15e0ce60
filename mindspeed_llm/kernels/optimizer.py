"""Owns AdamW with FusedAdam's contract; knows neither megatron nor its shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch

from mindspeed_llm.kernels.table import kernel


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019; L2-regularised Adam with `adam_w_mode=False`).

    The contract of apex's and Transformer Engine's FusedAdam, on which megatron-core's sharded
    optimizer state is built: `step` is an int in the parameter group, the state of a parameter is
    `exp_avg` and `exp_avg_sq`, shaped as the parameter, and nothing else. Parameters may have any
    floating dtype; gradients are taken in the parameter's dtype. megatron-core from 0.17 on says
    `capturable`, which must be False.

    Raises:
        ValueError: a hyper-parameter outside its range, or a step to be captured in a graph.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        capturable: bool = False,
    ) -> None:
        if capturable:  # `step` is an int on the host, which a graph would repeat
            raise ValueError("this AdamW is not captured in CUDA graphs: no optimizer_cuda_graph")
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}: lr, eps and "
                "weight_decay must not be negative, betas must lie in [0, 1)"
            )
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        self.adam_w_mode = adam_w_mode
        held = next((param for group in self.param_groups for param in group["params"]), None)
        self._kernel = kernel(
            "adamw",
            "cpu" if held is None else held.device.type,
            bias_correction=all(group["bias_correction"] for group in self.param_groups),
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of all parameters that have a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            # the count runs for groups without gradients too: all ranks must agree on it
            group["step"] = int(group.get("step", 0)) + 1
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        grads = [param.grad.to(param.dtype) for param in params]
        for param in params:
            if not self.state[param]:
                self.state[param]["exp_avg"] = torch.zeros_like(param)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
        first = [self.state[param]["exp_avg"] for param in params]
        second = [self.state[param]["exp_avg_sq"] for param in params]
        self._kernel(params, grads, first, second, Step.of(group, self.adam_w_mode))


@dataclasses.dataclass(frozen=True)
class Step:
    """The numbers of one update; `count` is 1 in the first. `decoupled`: weight decay acts on the
    weights (AdamW) and not through the gradient. `correct`: correct the means' bias."""

    count: int
    lr: float
    decay: float
    beta1: float
    beta2: float
    eps: float
    decoupled: bool
    correct: bool

    @classmethod
    def of(cls, group: dict[str, Any], decoupled: bool) -> Step:
        """From a parameter group."""
        beta1, beta2 = group["betas"]
        return cls(count=group["step"], lr=group["lr"], decay=group["weight_decay"], beta1=beta1,
                   beta2=beta2, eps=group["eps"], decoupled=decoupled,
                   correct=group["bias_correction"])  # fmt: skip


Tensors = list[torch.Tensor]


def foreach_update(
    params: Tensors, grads: Tensors, first: Tensors, second: Tensors, step: Step
) -> None:
    """One update in place, by torch._foreach; all lists of like shapes and dtypes."""
    if step.decoupled:
        torch._foreach_mul_(params, 1 - step.lr * step.decay)
    elif step.decay:
        grads = list(torch._foreach_add(grads, params, alpha=step.decay))
    torch._foreach_lerp_(first, grads, 1 - step.beta1)
    torch._foreach_mul_(second, step.beta2)
    torch._foreach_addcmul_(second, grads, grads, 1 - step.beta2)
    correction1 = correction2 = 1.0
    if step.correct:
        correction1, correction2 = 1 - step.beta1**step.count, 1 - step.beta2**step.count
    roots = torch._foreach_sqrt(second)
    torch._foreach_div_(roots, correction2**0.5)
    torch._foreach_add_(roots, step.eps)
    torch._foreach_addcdiv_(params, first, roots, value=-step.lr / correction1)


def fused_update(
    params: Tensors, grads: Tensors, first: Tensors, second: Tensors, step: Step
) -> None:
    """The same by ATen's fused step, which an NPU has too.

    On an NPU it ignores grad_scale and found_inf (op-plugin, FusedAdamW); neither is passed.

    Raises:
        ValueError: the bias is not to be corrected, which it always does.
    """
    if not step.correct:
        raise ValueError("ATen's fused AdamW always corrects the bias")
    update = torch._fused_adamw_ if step.decoupled else torch._fused_adam_
    count = torch.full((), float(step.count), dtype=torch.float32, device=params[0].device)
    update(params, grads, first, second, [], [count] * len(params), lr=step.lr, beta1=step.beta1,
           beta2=step.beta2, weight_decay=step.decay, eps=step.eps, amsgrad=False,
           maximize=False)  # fmt: skip
