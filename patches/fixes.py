"""Owns adapters for megatron-core's defects and assumptions; the register explains each."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.kernels.optimizer import AdamW
from mindspeed_llm.logging import get_logger
from mindspeed_llm.patches.device import Facade

_DISTRIB_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer"
_log = get_logger(__name__)


def no_jit(*functions: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Stands for jit_fuser, used with or without options: the decorated function as it is."""
    return functions[0] if functions else no_jit


def get_rng_state(
    device: Any = "cuda", clone: bool = False, graph_safe: bool = False
) -> torch.Tensor:
    """State of the CPU generator; there is no graph to be safe for."""
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
    """Restore the CPU generator now; the original waits for CUDA to be initialised."""
    torch.set_rng_state(new_state)


def any_device(tensor: torch.Tensor | None) -> None:
    """Stands for the assertion that a tensor lies on a GPU."""
    assert tensor is not None


class _NotThat(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "CPU RNG state changed" not in record.getMessage()


def fork(original: Callable[..., Any]) -> Callable[..., Any]:
    """Tracker.fork without its warning that the CPU generator moved: here it is the device's."""
    logger = logging.getLogger("megatron.core.tensor_parallel.random")

    @contextlib.contextmanager
    @functools.wraps(original)
    def forked(self: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        quiet = _NotThat()
        logger.addFilter(quiet)
        try:
            with original(self, *args, **kwargs):
                yield
        finally:
            logger.removeFilter(quiet)

    return forked


def fused_adam(original: type) -> type:
    """AdamW with FusedAdam's contract where torch's would be used; TE's and apex's stay."""
    return AdamW if original.__module__.startswith("torch.") else original


def using_pytorch_optimizer(original: bool) -> bool:
    """False: the Adam that is used has FusedAdam's contract, whoever made it."""
    return False


def have_fused_adam(original: bool) -> bool:
    """True: the Adam that is used has FusedAdam's contract, whoever made it."""
    return True


def using_apex_optimizer(original: bool) -> bool:
    """True unless Transformer Engine's FusedAdam is used: ours has apex's state layout."""
    return (
        original or not sys.modules["megatron.core.optimizer.distrib_optimizer"].USING_TE_OPTIMIZER
    )


def without_grad(original: Callable[..., Any]) -> Callable[..., Any]:
    """`original` under no_grad: it copies into leaves that require a gradient."""
    return torch.no_grad()(original)


def numpy_with_product(original: ModuleType) -> ModuleType:
    """numpy with `product`, which numpy 2 took away in favour of `prod`."""
    return (
        original if hasattr(original, "product") else Facade(original, {"product": original.prod})
    )


def forget_position_embedding_ranks(original: Callable[[], None]) -> Callable[[], None]:
    """destroy_model_parallel that forgets which ranks had position embeddings as well."""

    @functools.wraps(original)
    def destroy() -> None:
        original()
        sys.modules["megatron.core.parallel_state"]._POSITION_EMBEDDING_GLOBAL_RANKS = None

    return destroy


def layer_number_of_the_model(original: Callable[..., None]) -> Callable[..., None]:
    """Attention.__init__ that counts layers from the first of the model, not of the stage."""

    @functools.wraps(original)
    def init(
        self: Any, config: Any, submodules: Any, layer_number: int, *args: Any, **kwargs: Any
    ) -> None:
        layers = sys.modules["megatron.core.transformer.transformer_layer"]
        first = layers.get_transformer_layer_offset(config)
        original(self, config, submodules, layer_number + first, *args, **kwargs)

    return init


def nothing_to_quantize(original: Callable[..., None]) -> Callable[..., None]:
    """quantize_param_shard that has nothing to do for a model without fp8 parameters."""

    @functools.wraps(original)
    def quantize(model_params: list[Any], *args: Any, **kwargs: Any) -> None:
        if model_params:
            original(model_params, *args, **kwargs)

    return quantize


def write_item_as_saved(original: Callable[..., Any]) -> Callable[..., Any]:
    """torch's _write_item with the format that it took for granted before it asked for one."""
    if "serialization_format" not in inspect.signature(original).parameters:
        return original
    from torch.distributed.checkpoint.filesystem import SerializationFormat

    return functools.wraps(original)(
        functools.partial(original, serialization_format=SerializationFormat.TORCH_SAVE)
    )


def checkpoint_without_fp8(original: Callable[..., None]) -> Callable[..., None]:
    """CheckpointWithoutOutput.__init__ that takes its own default, False, for no fp8."""

    @functools.wraps(original)
    def init(self: Any, fp8: Any = False) -> None:
        original(self, fp8)
        self.fp8 = fp8 is not None and fp8 is not False

    return init


def share_storage_without_compiler() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """What _get_share_storage answers: a function that fills the emptied storage of its first
    argument with that of the second, as versions before 0.17 do. It copies, where the compiled one
    lets both share memory; neither changes the version that autograd compares."""

    def fill(emptied: torch.Tensor, recomputed: torch.Tensor) -> None:
        with torch.no_grad():
            emptied.untyped_storage().resize_(recomputed.untyped_storage().size())
            emptied.untyped_storage().copy_(recomputed.untyped_storage())

    return fill


def gating_without_transformer_engine(original: Callable[..., Any]) -> Callable[..., Any]:
    """router_gating_linear as torch has it, where the original needs Transformer Engine."""
    if hasattr(sys.modules[original.__module__], "te_general_gemm"):
        return original

    @functools.wraps(original)
    def gate(inp: torch.Tensor, weight: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        given = inspect.signature(original).bind(inp, weight, *rest, **named).arguments
        dtype, bias = given["router_dtype"], given.get("bias")
        bias = None if bias is None else bias.to(dtype)
        return torch.nn.functional.linear(inp.to(dtype), weight.to(dtype), bias)

    return gate


def counts_on_any_device(original: Callable[..., Any]) -> Callable[..., Any]:
    """maybe_move_tensor_to_cpu that asks where a tensor is only to be quicker on a GPU."""

    @functools.wraps(original)
    def move(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if not torch.is_tensor(tensor) or tensor.is_cuda:
            return original(tensor, as_numpy, record_stream)
        here = tensor.cpu()
        return here.numpy() if as_numpy else here

    return move


def gather_any_sizes(original: Callable[..., Any]) -> Callable[..., Any]:
    """_gather_along_first_dim whose parts are filled up to the longest where they differ."""

    @functools.wraps(original)
    def gather(
        input_: Any, group: Any = None, output_split_sizes: Any = None, *rest: Any, **kw: Any
    ) -> Any:
        if group is None or output_split_sizes is None or group.size() == 1:
            return original(input_, group, output_split_sizes, *rest, **kw)
        longest = input_.new_zeros(max(output_split_sizes), *input_.shape[1:])
        longest[: len(input_)] = input_
        parts = [torch.empty_like(longest) for _ in output_split_sizes]
        torch.distributed.all_gather(parts, longest, group=group)
        return torch.cat([p[:n] for p, n in zip(parts, output_split_sizes, strict=True)])

    return gather


def scatter_any_sizes(original: Callable[..., Any]) -> Callable[..., Any]:
    """_reduce_scatter_along_first_dim that sums all and takes this rank's part."""

    @functools.wraps(original)
    def scatter(
        input_: Any, group: Any = None, input_split_sizes: Any = None, *rest: Any, **kw: Any
    ) -> Any:
        if group is None or input_split_sizes is None or group.size() == 1:
            return original(input_, group, input_split_sizes, *rest, **kw)
        sums = input_.clone()
        torch.distributed.all_reduce(sums, group=group)
        return sums.split(list(input_split_sizes))[group.rank()].clone()

    return scatter


def keep_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Interleaved schedule that frees no output which gloo may still be sending."""

    @functools.wraps(original)
    def schedule(*args: Any, **kwargs: Any) -> Any:
        config = _config_of(kwargs["model"])
        if config.overlap_p2p_comm and config.deallocate_pipeline_outputs:
            _log.info("gloo with overlapped p2p: deallocate_pipeline_outputs is switched off")
            config.deallocate_pipeline_outputs = False
        return original(*args, **kwargs)

    return schedule


def refuse_two_stages(original: Callable[..., Any]) -> Callable[..., Any]:
    """Interleaved schedule that refuses two pipeline stages with batched p2p."""

    @functools.wraps(original)
    def schedule(*args: Any, **kwargs: Any) -> Any:
        config = _config_of(kwargs["model"])
        if config.pipeline_model_parallel_size == 2 and not config.overlap_p2p_comm:
            raise ConfigError(
                "virtual pipeline stages with --pipeline-model-parallel-size 2 and batched p2p "
                "mix up messages; set overlap_p2p_comm=True and batch_p2p_comm=False, or use "
                "another pipeline size"
            )
        return original(*args, **kwargs)

    return schedule


def without_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    """initialize_megatron that does not ask for a GPU."""

    @functools.wraps(original)
    def initialize(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs | {"allow_no_cuda": True})

    return initialize


def no_fused_kernels(args: Any) -> None:
    """Stands for the loader of kernels that only nvcc can build."""


def _config_of(model: Any) -> Any:
    """Configuration of the first chunk, below DistributedDataParallel and Float16Module."""
    return sys.modules["megatron.core.utils"].get_model_config(
        model[0] if isinstance(model, list) else model
    )


def both_masks(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Softmax that applies the given mask as well as the window's."""

    @functools.wraps(original)
    def forward(self: Any, input: torch.Tensor, mask: Any, *args: Any, **kwargs: Any) -> Any:
        if self.window_size is not None and mask is not None:
            input = self.mask_func(input, mask)
        return original(self, input, mask, *args, **kwargs)

    return forward
