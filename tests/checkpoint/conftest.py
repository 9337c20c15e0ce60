"""A training run small enough for tests, in as many phases and layouts as asked for."""

import pytest

_RUN = '''
import hashlib, inspect, resource, signal
import torch
from mindspeed_llm import logging as log
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import UserError

LENGTH = 12


def main(model_dir, phases):
    log.configure()
    return [phase(options.pop("model", model_dir), **options) for options in phases]


def phase(model_dir, *, tp=1, pp=1, bf16=False, distributed=True, dropout=0.0, load=None,
          resume=None, steps=0, save=None, more=0, start=0, check="full", disk=None, bucket=None,
          state=None, overlap=False, ep=1, etp=None, sp=False):
    """Build at a layout; load or resume; train `steps`; save; train `more`; tear down."""
    from megatron.core import parallel_state, tensor_parallel
    from mindspeed_llm.checkpoint.directory import model_directory
    from mindspeed_llm.checkpoint.state import load_training, load_weights, save_training

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tp, pp, expert_model_parallel_size=ep, expert_tensor_parallel_size=etp)
    tensor_parallel.random.initialize_rng_tracker(force_reset=True)
    tensor_parallel.model_parallel_cuda_manual_seed(5)
    torch.manual_seed(11 + dist.get_rank())
    out = {"losses": [], "error": None, "state": None}
    try:
        layout = ParallelConfig(
            tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=sp,
            expert_model_parallel_size=ep, expert_tensor_parallel_size=etp)
        gpt = build(Path(model_dir), layout, bf16, dropout)
        if load:
            load_weights(Path(load), [gpt], check=check)
        model, optimizer = wrap(gpt, bf16, distributed, bucket)
        if resume:
            out["state"] = load_training(Path(resume), [model], optimizer, check=check)
            start = out["state"]["step"]
        out["losses"] += [step(model, optimizer, i) for i in range(start, start + steps)]
        if save:
            if disk is not None and dist.get_rank() == 1:
                fill_the_disk(disk)
            save_training(Path(save), start + steps, model=[model], optimizer=optimizer,
                          state={"step": start + steps} | (state or {}),
                          hf_assets=model_directory(Path(model_dir)))
        last = start + steps
        out["losses"] += [step(model, optimizer, i) for i in range(last, last + more)]
        out["digest"] = digest(gpt, optimizer)
    except UserError as err:
        out["error"] = str(err)
    finally:
        fill_the_disk(resource.RLIM_INFINITY)
    return out


def known(function, **options):
    names = inspect.signature(function).parameters
    return {k: v for k, v in options.items() if k in names}


def build(model_dir, layout, bf16, dropout):
    from mindspeed_llm.checkpoint.directory import model_directory
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    return build_model(read_model(model_directory(model_dir)), layout,
                       dtype=torch.bfloat16 if bf16 else torch.float32,
                       hidden_dropout=dropout, attention_dropout=dropout)


def wrap(gpt, bf16, distributed, bucket):
    from megatron.core.distributed import (
        DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads)
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=distributed, grad_reduce_in_fp32=True, bucket_size=bucket)
    model = DistributedDataParallel(
        gpt.config, ddp, Float16Module(gpt.config, gpt) if bf16 else gpt)
    gpt.config.finalize_model_grads_func = finalize_model_grads
    optimizer = get_megatron_optimizer(OptimizerConfig(
        optimizer="adam", lr=1e-2, weight_decay=0.1, clip_grad=1.0, bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=distributed), [model])
    gpt.config.grad_scale_func = optimizer.scale_loss
    return model, optimizer


def step(model, optimizer, number):
    """One step on a batch that depends on `number` only; loss and gradient norm."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    size = parallel_state.get_data_parallel_world_size()
    drawn = torch.Generator().manual_seed(number)
    rows = torch.randint(0, 131, (4, 2, LENGTH + 1), generator=drawn)
    mine = iter(rows[parallel_state.get_data_parallel_rank()::size])

    def forward(batches, chunk):
        row = next(batches)
        loss = chunk(row[:, :-1].contiguous(), torch.arange(LENGTH)[None].expand(2, -1), None,
                     labels=row[:, 1:].contiguous())
        return loss, lambda value: (value.float().mean(), {"loss": value.detach().float().mean()})

    model.zero_grad_buffer()
    optimizer.zero_grad()
    losses = get_forward_backward_func()(
        forward_step_func=forward, data_iterator=mine, model=model, num_microbatches=4 // size,
        seq_length=LENGTH, micro_batch_size=2, forward_only=False)
    _, norm, _ = optimizer.step()
    total = torch.zeros(1, dtype=torch.float64)
    if parallel_state.is_pipeline_last_stage():
        total += torch.stack([x["loss"] for x in losses]).double().mean()
    dist.all_reduce(total)
    tp = parallel_state.get_tensor_model_parallel_world_size()
    return [total.item() / size / tp, float(norm)]


def digest(gpt, optimizer):
    """Of this rank's weights and optimizer state, bit by bit."""
    sha = hashlib.sha256()
    for tensor in gpt.parameters():
        sha.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for main in group["params"]:
                for tensor in (main, *part.optimizer.state[main].values()):
                    if torch.is_tensor(tensor):
                        sha.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def fill_the_disk(limit):
    """From now on this process cannot write files beyond `limit` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
'''


@pytest.fixture
def train(run_ranks):
    """`train(world_size, model_dir, *phases)` -> for each phase, each rank's result.

    A phase is a dictionary of options of `phase` above, and `model` for another model directory;
    all run in one process group.
    """

    def run(world_size, model_dir, *phases, **options):
        ranks = run_ranks(world_size, _RUN, str(model_dir), list(phases), **options)
        return [[rank[number] for rank in ranks] for number in range(len(phases))]

    return run
