"""Trains a tiny GPTModel of plain megatron-core in any layout; the source of rank processes.

`run_ranks(n, Path(...).read_text(), *jobs)` calls `main(*jobs)`, one dictionary of options for each
run. Weights and data do not depend on the layout, so every layout must give the same numbers.
"""

import inspect
import zlib
from pathlib import Path

import torch
import torch.distributed as dist

STEPS, MICRO_BATCHES, BATCH, LENGTH, VOCAB = 3, 4, 2, 32, 128
OLDER_NAMES = {"fully_reshardable": "fully_sharded_model_space",
               "dp_reshardable": "fully_sharded_bucket_space"}  # fmt: skip
DEFAULTS = dict(tp=1, pp=1, vp=None, sp=False, zero=True, overlap=False, dropout=0.0, bf16=False,
                recompute={}, config={}, spec={}, device="cpu", steps=STEPS, save=None, load=None,
                sharding="fully_reshardable", without=())  # fmt: skip


def known(function, **values):
    """The keyword arguments that the installed version takes."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters}


def build_config(o):
    from megatron.core.transformer import TransformerConfig

    dtype = torch.bfloat16 if o["bf16"] else torch.float32
    values = dict(num_layers=4, hidden_size=64, num_attention_heads=4, num_query_groups=2,
                  use_cpu_initialization=True, normalization="RMSNorm", gated_linear_unit=True,
                  activation_func=torch.nn.functional.silu, add_bias_linear=False,
                  attention_dropout=o["dropout"], hidden_dropout=o["dropout"],
                  tensor_model_parallel_size=o["tp"], pipeline_model_parallel_size=o["pp"],
                  virtual_pipeline_model_parallel_size=o["vp"], sequence_parallel=o["sp"],
                  pipeline_dtype=dtype, params_dtype=dtype, bf16=o["bf16"],
                  bias_activation_fusion=True, bias_dropout_fusion=True,
                  masked_softmax_fusion=False, persist_layer_norm=False,
                  gradient_accumulation_fusion=False,
                  deallocate_pipeline_outputs=True)  # fmt: skip
    return TransformerConfig(**values | o["recompute"] | o["config"])


def build_chunk(o, config, stage):
    from megatron.core import parallel_state as ps
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    spec = get_gpt_layer_local_spec(normalization="RMSNorm", **o["spec"])
    where = {} if stage is None else dict(ignore_virtual=False, vp_stage=stage)
    model = GPTModel(config, spec, vocab_size=VOCAB, max_sequence_length=64,
                     position_embedding_type="rope", share_embeddings_and_output_weights=True,
                     pre_process=ps.is_pipeline_first_stage(**where),
                     post_process=ps.is_pipeline_last_stage(**where),
                     **known(GPTModel.__init__, vp_stage=stage))  # fmt: skip
    fill(model, o["tp"], ps.get_tensor_model_parallel_rank())
    model = model if o["device"] == "cpu" else model.to(o["device"])
    return model.bfloat16() if o["bf16"] else model


def fill(model, tp, rank):
    """Weights as a function of global name and shape alone."""
    offset = model.decoder.layers[0].layer_number - 1
    for name, weight in model.named_parameters():
        parts = name.split(".")
        if name.startswith("decoder.layers."):
            parts[2] = str(int(parts[2]) + offset)
        if name == "output_layer.weight":
            parts = ["embedding", "word_embeddings", "weight"]
        if "norm" in name:
            weight.data.fill_(1)
            continue
        shape, dim = list(weight.shape), getattr(weight, "partition_dim", -1)
        split = getattr(weight, "tensor_model_parallel", False) and tp > 1
        if split:
            shape[dim] *= tp
        seed = torch.Generator().manual_seed(zlib.crc32(".".join(parts).encode()))
        full = torch.randn(shape, generator=seed) * 0.05
        if split and "linear_fc1" in name:
            full = torch.cat([half.chunk(tp, 0)[rank] for half in full.chunk(2, 0)])
        elif split:
            full = full.chunk(tp, dim)[rank]
        weight.data.copy_(full)


def build(o):
    from megatron.core.distributed import DistributedDataParallel as DDP
    from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    config = build_config(o)
    stages = range(o["vp"]) if o["vp"] else [None]
    overlap = o["overlap"]
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=o["zero"], overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and o["zero"], grad_reduce_in_fp32=o["bf16"],
        bucket_size=20000 if overlap else None)  # fmt: skip
    chunks = [DDP(config, ddp, build_chunk(o, config, stage)) for stage in stages]
    config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        config.no_sync_func = chunks[0].no_sync
        if o["zero"]:
            config.param_sync_func = chunks[0].start_param_sync
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-3, weight_decay=0.01, clip_grad=1.0,
                        use_distributed_optimizer=o["zero"], bf16=o["bf16"],
                        params_dtype=config.params_dtype,
                        **known(OptimizerConfig, overlap_param_gather=overlap and o["zero"])),
        chunks)  # fmt: skip
    config.grad_scale_func = optimizer.scale_loss
    return config, chunks, optimizer


def loss_of(out):
    loss = out.float().mean()
    return loss, {"loss": loss.detach().clone()}


def forward_step(batches, model):
    rows = next(batches)
    positions = torch.arange(LENGTH, device=rows.device)[None].expand(BATCH, -1)
    return model(
        rows[:, :-1].contiguous(), positions, None, labels=rows[:, 1:].contiguous()
    ), loss_of


def run_step(o, chunks, optimizer, data):
    """One step on `data` [micro-batches, batch, length + 1]: (mean loss or None, gradient norm)."""
    from megatron.core import parallel_state as ps
    from megatron.core.pipeline_parallel import get_forward_backward_func

    size, rank = ps.get_data_parallel_world_size(), ps.get_data_parallel_rank()
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    feeds = [iter(data[rank::size].to(o["device"])) for _ in chunks]
    losses = get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=feeds if o["vp"] else feeds[0],
        model=chunks if o["vp"] else chunks[0], num_microbatches=MICRO_BATCHES // size,
        seq_length=LENGTH, micro_batch_size=BATCH, forward_only=False)  # fmt: skip
    _, norm, _ = optimizer.step()
    if not losses:
        return None, float(norm)
    mean = torch.stack([entry["loss"] for entry in losses]).mean()
    dist.all_reduce(mean, group=ps.get_data_parallel_group())
    return mean.item() / size, float(norm)


def state_of(o, chunks, optimizer, loading=False):
    from megatron.core import parallel_state as ps
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    sharding, newer = o["sharding"], inspect.getsource(DistributedOptimizer.sharded_state_dict)
    if f'"{sharding}"' not in newer and f"'{sharding}'" not in newer:
        sharding = OLDER_NAMES[sharding]
    group = ps.get_data_parallel_group(with_context_parallel=True)
    meta = dict(distrib_optim_sharding_type=sharding, singleton_local_shards=False,
                chained_optim_avoid_prefix=True, dp_cp_group=group)  # fmt: skip
    state = {"model": chunks[0].module.sharded_state_dict(metadata=meta)}
    extra = known(DistributedOptimizer.sharded_state_dict, metadata=meta)
    extra = extra or {"sharding_type": sharding}
    state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=loading, **extra)
    return state


def run(o):
    from megatron.core import dist_checkpointing, tensor_parallel
    from megatron.core import parallel_state as ps

    ps.initialize_model_parallel(o["tp"], o["pp"], o["vp"])
    tensor_parallel.model_parallel_cuda_manual_seed(1234)
    config, chunks, optimizer = build(o)
    if o["load"]:
        loaded = dist_checkpointing.load(state_of(o, chunks, optimizer, loading=True), o["load"])
        chunks[0].module.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
    seed = torch.Generator().manual_seed(3)
    data = torch.randint(0, VOCAB, (8, MICRO_BATCHES, BATCH, LENGTH + 1), generator=seed)
    first = STEPS if o["load"] else 0
    steps = [run_step(o, chunks, optimizer, data[first + i]) for i in range(o["steps"])]
    result = {"losses": [loss for loss, _ in steps], "norms": [norm for _, norm in steps],
              "dealloc": config.deallocate_pipeline_outputs,
              "attention": [layer.self_attention.layer_number == layer.layer_number
                            for chunk in chunks for layer in chunk.module.decoder.layers],
              }  # fmt: skip
    if o["save"]:
        if dist.get_rank() == 0:
            Path(o["save"]).mkdir()
        dist.barrier()
        dist_checkpointing.save(state_of(o, chunks, optimizer), o["save"])
        # what a run that is not interrupted does next; its second step shows the optimizer's state
        after = [run_step(o, chunks, optimizer, data[o["steps"] + i]) for i in range(2)]
        result |= {"next": {"losses": [x for x, _ in after], "norms": [x for _, x in after]}}
    ps.destroy_model_parallel()
    return result


def only(without):
    """Apply the register without some targets, to see the defect that they mend."""
    from mindspeed_llm.patches import engine
    from mindspeed_llm.patches.registry import REGISTER

    engine.revert()
    left = [patch for patch in REGISTER if patch.adapter.split(":")[1] not in without]
    assert len(left) < len(REGISTER)
    engine.Engine(left).apply("cpu")


def main(*jobs):
    if jobs[0].get("without"):
        only(jobs[0]["without"])
    import megatron.core

    results = [run(DEFAULTS | job) for job in jobs]
    return {"file": megatron.core.__file__, "results": results}
