"""What each rank does in the tests of `models.memory`: train one step and count bytes.

The text of this file is run by `run_ranks`.
"""

import dataclasses
from pathlib import Path

import torch
from megatron.core import parallel_state, tensor_parallel

from mindspeed_llm.config.optimizer import OptimizerSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.models.build import build_model
from mindspeed_llm.models.memory import Run, layer_bytes, stage_memory
from mindspeed_llm.models.registry import read_model
from mindspeed_llm.training.optimizer import build_optimizer, wrap_model


def nbytes(tensors):
    """Bytes of the storages of `tensors`, each once."""
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(kept.values())


def states(model, parallel, sharded, bf16):
    """[what a rank has, what is predicted], in bytes: parameters, gradients, optimizer."""
    replicas = parallel_state.get_data_parallel_world_size()
    dtype = torch.bfloat16 if bf16 else torch.float32
    gpt = build_model(model, parallel, dtype=dtype, calculate_per_token_loss=True)
    wrapped = wrap_model([gpt], sharded_state=sharded)
    optimizer = build_optimizer(wrapped, OptimizerSettings(lr=1e-3), dtype)
    if sharded:
        settings = OptimizerSettings(lr=1e-3, use_distributed_optimizer=True)
        optimizer = build_optimizer(wrapped, settings, dtype)
    for parameter in gpt.parameters():
        parameter.main_grad.normal_()
    assert optimizer.step()[0]
    kept = []
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for main in group["params"]:
                state = part.optimizer.state[main].values()
                kept += [t for t in (main, *state) if torch.is_tensor(t)]
    own = {p.untyped_storage().data_ptr() for p in gpt.parameters()}
    kept = [t for t in kept if t.untyped_storage().data_ptr() not in own]
    run = Run(parallel=parallel, data_parallel=replicas, seq_length=32, bf16=bf16,
              distributed_optimizer=sharded)  # fmt: skip
    expected = stage_memory(model, run, parallel_state.get_pipeline_model_parallel_rank())
    found = {
        "parameters": sum(p.numel() * p.element_size() for p in gpt.parameters()),
        "gradients": nbytes([p.main_grad for p in gpt.parameters()]),
        "optimizer": nbytes(kept),
    }
    return {name: [size, getattr(expected, name)] for name, size in found.items()}


def layers(model, bf16):
    """[bytes that one more layer keeps for the backward pass, what is predicted]."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    sizes = []
    ids = torch.randint(0, model.vocab_size, (2, 64))
    for count in (2, 4):  # two of each kind more: everything outside the layers cancels out
        kinds = model.layer_types[:count]
        sparse = model.experts
        if sparse is not None:
            own = tuple(layer for layer in sparse.layers if layer < count)
            sparse = dataclasses.replace(sparse, layers=own)
        smaller = dataclasses.replace(model, num_layers=count, layer_types=kinds, experts=sparse)
        gpt = build_model(smaller, ParallelConfig(), dtype=dtype)
        own = {p.untyped_storage().data_ptr() for p in gpt.parameters()}
        kept = {}

        def keep(tensor, own=own, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = gpt(ids, torch.arange(64)[None].expand(2, -1), None)
            sizes.append(sum(size for size, _ in kept.values()))
        del logits
    run = Run(parallel=ParallelConfig(), data_parallel=1, seq_length=64, micro_batch_size=2,
              bf16=bf16)  # fmt: skip
    expected = sum(layer_bytes(model, run, layer) for layer in (2, 3))
    return [sizes[1] - sizes[0], expected]


def main(directories, tp, pp, sharded, bf16, ep=1, etp=None, cp=1, layer_list=None):
    parallel_state.initialize_model_parallel(
        tp, pp, context_parallel_size=cp, expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
    )  # fmt: skip
    parallel = ParallelConfig(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
        context_parallel_size=cp, num_layer_list=layer_list,
    )  # fmt: skip
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    models = {name: read_model(Path(place)) for name, place in directories.items()}
    out = {"states": {n: states(m, parallel, sharded, bf16) for n, m in models.items()}}
    if tp * pp == 1 and not sharded:
        out["layers"] = {n: layers(m, bf16) for n, m in models.items()}
    return out
